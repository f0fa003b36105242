"""What a kubelet does with a pod's container, on this machine: crun runs it from the image, as its spec says.

The sandbox's pods are only said to run. Here one really does, with the volumes, the environment, the token of its
ServiceAccount and the rights that its spec gives it, on the host's network (so that it reaches the sandbox's API server
and Redis, and two containers cannot have the same port). Left out: probes, resource limits, init containers and seccomp
profiles. What else a spec asks for and is not played is an error, so that no test passes without it.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from urllib.parse import urlsplit

from sandbox.processes import spawn

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sandbox.cluster import Cluster
    from sandbox.images import Image
    from sandbox.processes import Process

EXEC_TIMEOUT_SECONDS = 60
_GRACE_SECONDS = 30  # Kubernetes' default
_FILE_MODE = 0o644
_TOKEN_MODE = 0o600
_NAMESPACES = ("pid", "mount", "ipc", "uts")
_CAPABILITIES = ("bounding", "effective", "inheritable", "permitted", "ambient")
_MASKED = ("/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/sched_debug")
_READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

# Whatever ends unshare or crun ends the container: a PID namespace does not outlive its first process, which is crun.
# Hosts have cgroups of version 1, 2 or both; the latter crun does not take. It sets no limits, so it gets version 2.
_ALONE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
_WITH_CGROUPS = ("sh", "-ec", 'mount -t cgroup2 none /sys/fs/cgroup; exec "$@"', "sh")


class UnplayedError(RuntimeError):
    """The pod asks for something that this kubelet does not do, or for which no kubelet would start it."""


def unavailable() -> str | None:
    """Why no container can be run here, and what would change that; None where it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "a container is run by root on Linux; running the tests as root there would un-skip it"
    if missing := [tool for tool in ("crun", "unshare", "nsenter") if shutil.which(tool) is None]:
        return f"not on PATH: {', '.join(missing)}; `apt install crun util-linux` would un-skip it"
    return None


class Container:
    """The first container of a pod, as long as a `with` block. Blocking.

    Args:
        cluster: where its Secrets, ConfigMaps and token come from, and the API server that it is told of.
        pod: the object as the API server has it.
        image: what to run, whatever name the pod gives it. Empty directories to mount at may be made in it.
        environment: wins over the pod's: a port of its own, for one.
    """

    def __init__(
        self, cluster: Cluster, pod: Mapping[str, Any], image: Image, *, environment: Mapping[str, str] | None = None
    ) -> None:
        self._cluster = cluster
        self._pod = _Pod(cluster, pod, image)
        self._scratch = tempfile.TemporaryDirectory(prefix="podlink-kubelet-", ignore_cleanup_errors=True)
        self._directory = Path(self._scratch.name)
        self._volumes = _Volumes(self._pod, self._directory / "volumes")
        self._environment = dict(environment or {})
        self._process: Process | None = None
        self._starts = 0

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._scratch.cleanup()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._scratch.cleanup()

    @property
    def process(self) -> Process:
        """What runs it since the last start, with its log and exit code; to end it there are `stop` and `kill`."""
        if self._process is None:
            raise RuntimeError("the container was never started")
        return self._process

    def start(self) -> None:
        """Start it, also again after its end; emptyDirs keep what they hold.

        Raises:
            UnplayedError: see there.
        """
        self.sync()
        self._starts += 1
        bundle = self._directory / f"bundle-{self._starts}"
        bundle.mkdir()
        (bundle / "config.json").write_text(json.dumps(self._runtime_config()))
        argv = [*_ALONE, *_WITH_CGROUPS, *self._crun("run", f"--bundle={bundle}", self._name)]
        self._process = spawn(argv, log_path=self._directory / f"log-{self._starts}")

    def sync(self) -> None:
        """Bring its volumes up to date, as a kubelet does about once a minute."""
        self._volumes.sync()

    def execute(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a command beside it, as `kubectl exec` does, and return its exit code and output, as text."""
        # crun's own view of the processes is needed, for that is what it wrote down.
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        enter = ["nsenter", f"--target={children[0]}", "--pid", "--mount"]
        return subprocess.run(
            [*enter, *self._crun("exec", f"--user={self._pod.user}:{self._pod.group}", self._name, *argv)],
            capture_output=True,
            text=True,
            timeout=EXEC_TIMEOUT_SECONDS,
            check=False,
        )

    def stop(self) -> int:
        """End it as the kubelet does: SIGTERM, and SIGKILL after the pod's grace period. Returns the exit code."""
        # unshare, which leads the group, ignores SIGTERM; crun passes it on.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            self.process.wait(self._pod.spec.get("terminationGracePeriodSeconds", _GRACE_SECONDS))
        return self.kill()

    def kill(self) -> int:
        """End it at once. Returns the exit code; may be repeated."""
        return self.process.kill()

    @property
    def _name(self) -> str:
        return f"podlink-{self._starts}"

    def _crun(self, *words: str) -> list[str]:
        return ["crun", f"--root={self._directory / 'crun'}", "--cgroup-manager=disabled", *words]

    def _runtime_config(self) -> dict[str, Any]:
        """config.json of the OCI runtime specification."""
        pod, image = self._pod, self._pod.image
        dropped = (pod.security("capabilities") or {}).get("drop")
        if dropped != ["ALL"]:
            raise UnplayedError(f"capabilities.drop is {dropped}: only [ALL] is played")
        defaults = [] if "command" in pod.container else image.config.get("Cmd", [])
        return {
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": pod.user, "gid": pod.group, "additionalGids": pod.groups},
                "args": pod.container.get("command", image.config["Entrypoint"]) + pod.container.get("args", defaults),
                "env": [f"{name}={value}" for name, value in self._env().items()],
                "cwd": pod.container.get("workingDir", image.config.get("WorkingDir", "/")),
                "capabilities": {kind: [] for kind in _CAPABILITIES},
                "noNewPrivileges": pod.security("allowPrivilegeEscalation") is False,
            },
            "root": {"path": str(image.rootfs), "readonly": bool(pod.security("readOnlyRootFilesystem"))},
            "hostname": pod.name,
            "mounts": [*_system_mounts(), *self._volumes.mounts()],
            "linux": {
                "namespaces": [{"type": each} for each in _NAMESPACES],
                "maskedPaths": _MASKED,
                "readonlyPaths": _READ_ONLY,
            },
        }

    def _env(self) -> dict[str, str]:
        server = "jsonpath={.clusters[0].cluster.server}"
        api_server = urlsplit(self._cluster.kubectl("config", "view", "--minify", "-o", server).stdout)
        return {
            **dict(entry.split("=", 1) for entry in self._pod.image.config.get("Env", ())),
            # As the container runtime and the kubelet set them.
            "HOME": "/",
            "HOSTNAME": self._pod.name,
            "KUBERNETES_SERVICE_HOST": str(api_server.hostname),
            "KUBERNETES_SERVICE_PORT": str(api_server.port),
            **self._pod.env(),
            **self._environment,
        }


class _Pod:
    """A pod's spec with what it refers to, which the API server is asked for each time."""

    def __init__(self, cluster: Cluster, pod: Mapping[str, Any], image: Image) -> None:
        self._cluster = cluster
        self._pod = pod
        self.image = image
        self.spec = pod["spec"]
        self.container = self.spec["containers"][0]
        self.name: str = pod["metadata"]["name"]
        self.user, self.group = self._identity()
        self.groups = [group for group in [self.security("fsGroup")] if group is not None]

    def security(self, name: str) -> Any:
        """A setting of the container's security context, else of the pod's; None where neither has it."""
        contexts = (self.container.get("securityContext"), self.spec.get("securityContext"))
        return next((context[name] for context in contexts if context and name in context), None)

    def _identity(self) -> tuple[int, int]:
        wanted = [self.security("runAsUser"), self.security("runAsGroup")]
        images = self.image.config.get("User", "").partition(":")[::2]
        user, group = (its if mine is None else str(mine) for mine, its in zip(wanted, images, strict=True))
        if not (user.isdigit() and group.isdigit() and int(user)):
            raise UnplayedError(
                f"it would run as user {user!r}, group {group!r}: only numbers, and not root, are played"
            )
        return int(user), int(group)

    def env(self) -> dict[str, str]:
        """The environment that its spec gives it."""
        if "envFrom" in self.container:
            raise UnplayedError("containers: envFrom is not played here")
        found: dict[str, str] = {}
        for entry in self.container.get("env", ()):
            value = self._value(entry["valueFrom"]) if "valueFrom" in entry else entry.get("value", "")
            if value is not None:
                found[entry["name"]] = value
        return found

    def _value(self, source: Mapping[str, Any]) -> str | None:
        _refuse(source, {"fieldRef", "secretKeyRef", "configMapKeyRef"}, "valueFrom")
        if "fieldRef" in source:
            return self.field(source["fieldRef"])
        ((kind, reference),) = source.items()
        content = self.content(kind.removesuffix("KeyRef"), reference["name"], reference, [reference["key"]])
        return content[reference["key"]].decode() if content else None

    def field(self, reference: Mapping[str, str]) -> str:
        """A field of the pod, as a fieldRef names it."""
        if reference["fieldPath"] in {"status.podIP", "status.hostIP"}:
            return "127.0.0.1"
        value: Any = self._pod
        for in_brackets, plain in re.findall(r"\['([^']+)'\]|([^.\[]+)", reference["fieldPath"]):
            value = value.get(in_brackets or plain, "")
        return str(value)

    def content(self, kind: str, name: str, reference: Mapping[str, Any], keys: Iterable[str] = ()) -> dict[str, bytes]:
        """What a Secret or a ConfigMap holds under these keys, else under all; what is optional may be missing."""
        namespace = self._pod["metadata"]["namespace"]
        found = self._cluster.kubectl("get", kind, name, "-n", namespace, "--ignore-not-found", "-o", "json").stdout
        data = json.loads(found or "{}").get("data") or {}
        decode = base64.b64decode if kind == "secret" else str.encode
        content = {key: decode(value) for key, value in data.items()}
        missing = [key for key in keys if key not in content]
        if (missing or not found) and not reference.get("optional"):
            what = f"{kind} {name} of namespace {namespace}"
            raise UnplayedError(f"{what} has no key {', '.join(missing)}" if found else f"there is no {what}")
        return {key: content[key] for key in keys or content if key in content}

    def token(self, wanted: Mapping[str, Any]) -> bytes:
        """A token of its ServiceAccount, bound to the pod, as the kubelet asks for it."""
        metadata = self._pod["metadata"]
        audience = [f"--audience={wanted['audience']}"] if "audience" in wanted else []
        token = self._cluster.kubectl(
            *("create", "token", self.spec["serviceAccountName"], "-n", metadata["namespace"], *audience),
            f"--duration={wanted['expirationSeconds']}s",
            "--bound-object-kind=Pod",
            f"--bound-object-name={metadata['name']}",
            f"--bound-object-uid={metadata['uid']}",
        )
        return token.stdout.strip().encode()


class _File(NamedTuple):
    content: bytes
    mode: int
    owner: int = 0


class _Volumes:
    """The volumes of a pod, as directories with the owners and modes that a kubelet gives them."""

    def __init__(self, pod: _Pod, directory: Path) -> None:
        self._pod = pod
        self._directory = directory

    def sync(self) -> None:
        """Make those that are missing, and bring the others up to date."""
        for volume in self._pod.spec.get("volumes", ()):
            directory = self._directory / volume["name"]
            is_new = not directory.exists()
            directory.mkdir(parents=True, exist_ok=True)
            if "emptyDir" not in volume:
                _publish(self._files(volume), directory, self._pod.security("fsGroup"))
            elif is_new:
                self._open(directory)

    def mounts(self) -> list[dict[str, Any]]:
        """Where the container has them, in terms of the OCI runtime specification."""
        wanted = self._pod.container.get("volumeMounts", ())
        for each in wanted:
            _refuse(each, {"name", "mountPath", "readOnly"}, "volumeMounts")
        return [
            _bind(self._directory / each["name"], each["mountPath"], read_only=each.get("readOnly", False))
            for each in wanted
        ]

    def _open(self, directory: Path) -> None:
        """Let everybody in the pod write there."""
        group = self._pod.security("fsGroup")
        directory.chmod(0o777 if group is None else 0o2777)
        os.chown(directory, 0, 0 if group is None else group)

    def _files(self, volume: Mapping[str, Any]) -> dict[str, _File]:
        """The files of a volume by their path in it."""
        projected = volume.get("projected", {"sources": [volume]})
        files: dict[str, _File] = {}
        for source in projected["sources"]:
            files |= self._files_of(source, projected.get("defaultMode", _FILE_MODE))
        return files

    def _files_of(self, source: Mapping[str, Any], mode: int) -> dict[str, _File]:
        _refuse(source, {"name", "secret", "configMap", "serviceAccountToken", "downwardAPI"}, "volumes")
        if "serviceAccountToken" in source:
            wanted = source["serviceAccountToken"]
            return {wanted["path"]: _File(self._pod.token(wanted), _TOKEN_MODE, self._pod.user)}
        if "downwardAPI" in source:
            items = source["downwardAPI"]["items"]
            return {each["path"]: _File(self._pod.field(each["fieldRef"]).encode(), mode) for each in items}
        kind = "secret" if "secret" in source else "configMap"
        reference = source[kind]
        paths = {each["key"]: each["path"] for each in reference.get("items", ())}
        content = self._pod.content(kind, reference.get("secretName") or reference["name"], reference, paths)
        mode = reference.get("defaultMode", mode)
        return {paths.get(key, key): _File(value, mode) for key, value in content.items()}


def _refuse(given: Mapping[str, Any], known: set[str], where: str) -> None:
    if unknown := sorted(given.keys() - known):
        raise UnplayedError(f"{where}: {', '.join(unknown)} is not played here")


def _publish(files: Mapping[str, _File], directory: Path, group: int | None) -> None:
    """Replace the files of a volume all at once, as the kubelet does: names are links into `..data`, which moves."""
    fresh = Path(tempfile.mkdtemp(prefix="..", dir=directory))
    fresh.chmod(0o755)
    for name, file in files.items():
        path = fresh / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.content)
        os.chown(path, file.owner, group or 0)
        path.chmod(file.mode if group is None else file.mode | 0o040)
    data, moving = directory / "..data", directory / "..data_tmp"
    last = data.resolve() if data.is_symlink() else None
    moving.symlink_to(fresh.name)
    moving.rename(data)
    _link({Path(name).parts[0] for name in files}, directory)
    if last is not None:
        shutil.rmtree(last)


def _link(names: set[str], directory: Path) -> None:
    there = {path.name for path in directory.iterdir() if not path.name.startswith("..")}
    for name in there - names:
        (directory / name).unlink()
    for name in names - there:
        (directory / name).symlink_to(Path("..data") / name)


def _system_mounts() -> list[dict[str, Any]]:
    private = ["nosuid", "noexec", "nodev"]
    return [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": private},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755"]},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": [*private, "mode=1777"]},  # noqa: S108
        # On the host's network, names are looked up as the host does.
        _bind(Path("/etc/hosts"), "/etc/hosts", read_only=True),
        _bind(Path("/etc/resolv.conf"), "/etc/resolv.conf", read_only=True),
    ]


def _bind(source: Path, destination: str, *, read_only: bool) -> dict[str, Any]:
    options = ["rbind", "rprivate", *(["ro"] if read_only else [])]
    return {"destination": destination, "type": "bind", "source": str(source), "options": options}
