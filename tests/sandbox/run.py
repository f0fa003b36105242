"""`make run`: PodLink on a cluster of its own, to look at and to play with.

Starts a control plane, a Valkey and the operator, applies the samples, and shows services, pods and PodLinks as they
change, until Ctrl-C. Everything runs on 127.0.0.1 and ends with this process; the user's kubeconfig is not touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import http.client
import os
import shlex
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console
from rich.live import Live

from podlink import PodLinkError, StatefulExecutor, status
from podlink.cluster.access import load_access
from podlink.cluster.client import Cluster as Reader
from sandbox import binaries
from sandbox.binaries import BinariesError
from sandbox.cluster import KUBECTL, REPOSITORY, Cluster, KubectlError
from sandbox.control_plane import ControlPlane, ControlPlaneError
from sandbox.processes import die_with_parent, ended_by_signal, free_port, spawn, until
from sandbox.redis_servers import RedisServer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sandbox.processes import Process

SAMPLES = REPOSITORY / "deploy" / "samples"
NAMESPACE = "default"
TIMEOUT_SECONDS = 60
REFRESH_SECONDS = 0.5

console = Console(highlight=False, soft_wrap=True, markup=False)


class RunError(RuntimeError):
    """The sandbox cannot be started, or broke; the text is for the user."""


class Sandbox(NamedTuple):
    """What runs."""

    directory: Path
    cluster: ControlPlane
    redis: RedisServer
    operator: Process


def main() -> None:
    """Run until a signal. Exit code 0 after a signal, 1 when something failed."""
    die_with_parent()
    directory = Path(os.environ.get("PODLINK_SANDBOX_DIR") or REPOSITORY / ".sandbox").absolute()
    started = time.monotonic()
    try:
        with ended_by_signal(), only_one(directory), scratch(directory / "tmp"), sandbox(directory) as running:
            deploy_samples(running)
            console.print(f"\nready after {time.monotonic() - started:.0f} s\n\n{instructions(running)}\n")
            asyncio.run(show(running))
        # The terminal may be what ended it.
        with contextlib.suppress(OSError):
            say("stopped; nothing is left running")
    except BrokenPipeError:
        # Whoever read our output is gone.
        sys.exit(1)
    except (BinariesError, ControlPlaneError, KubectlError, PodLinkError, RunError, TimeoutError) as error:
        sys.exit(f"error: {error}")


@contextlib.contextmanager
def only_one(directory: Path) -> Iterator[None]:
    """Hold the directory; the kernel lets go of it however this process ends."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise RunError(
                f"{directory} is in use by another `make run` (process {lock.read().strip()}). "
                "End that one with Ctrl-C, or name another directory: PODLINK_SANDBOX_DIR=/some/where make run"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


@contextlib.contextmanager
def scratch(directory: Path) -> Iterator[None]:
    """Have temporary files in here; what a run that was killed leaves goes with the next one."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    before, tempfile.tempdir = tempfile.tempdir, str(directory)
    try:
        yield
    finally:
        tempfile.tempdir = before
        shutil.rmtree(directory, ignore_errors=True)


WAITING = """\
Valkey runs. The control plane is compiled once, which takes some minutes.
Meanwhile, try the library in a second terminal:
  cd {repository}
  export PATH={programs}:$PATH
  export PODLINK_REDIS_URL={url}
  python - <<'EOF'
import os
from podlink.sync import StatefulExecutor

with StatefulExecutor.from_url(os.environ["PODLINK_REDIS_URL"]) as executor:
    for pod in (0, 1, 2):
        executor.set_service_state("trial", "lobby", pod, "Ready")
    for uid in ("player-1", "player-2", "player-3"):
        print(uid, "is linked to pod", executor.compute_linked_pod_if_absent("trial", uid, "lobby"))
EOF
  podlink status --namespace trial
{look}
When the control plane is there, this run goes on by itself.
"""


@contextlib.contextmanager
def sandbox(directory: Path) -> Iterator[Sandbox]:
    """Start everything, with nothing in it; the files for the user's second terminal are there as long as it runs."""
    redis_data = directory / "redis"
    # The links of an earlier run are to pods of a cluster that is gone.
    shutil.rmtree(redis_data, ignore_errors=True)
    redis_data.mkdir()
    kubeconfig, redis_url = directory / "kubeconfig", directory / "redis-url"
    with contextlib.ExitStack() as stack:
        say("starting Valkey")
        redis = stack.enter_context(RedisServer("valkey", data_dir=redis_data, log_path=directory / "valkey.log"))
        if binaries.found() is None:
            say(f"\n{meanwhile(redis)}")
        say("starting the control plane")
        cluster = stack.enter_context(ControlPlane(directory / "control-plane"))
        say("starting the operator")
        operator = stack.enter_context(start_operator(directory, cluster, redis))
        stack.callback(kubeconfig.unlink, missing_ok=True)
        shutil.copy(cluster.kubeconfig, kubeconfig)
        stack.callback(redis_url.unlink, missing_ok=True)
        redis_url.write_text(f"{redis.url}\n")
        yield Sandbox(directory, cluster, redis, operator)


def meanwhile(redis: RedisServer) -> str:
    """What can be tried while there is no cluster yet."""
    client = next(filter(None, map(shutil.which, ("redis-cli", "valkey-cli"))), None)
    look = f"  {Path(client).name} -u $PODLINK_REDIS_URL hgetall 'sf:{{trial:state:lobby}}load'\n" if client else ""
    return WAITING.format(
        repository=shlex.quote(str(REPOSITORY)),
        programs=shlex.quote(str(KUBECTL.parent)),
        url=redis.url,
        look=look,
    )


def start_operator(directory: Path, cluster: Cluster, redis: RedisServer) -> Process:
    """`podlink run`, ready."""
    port = free_port()
    log_path = directory / "operator.log"
    log_path.unlink(missing_ok=True)
    command = [sys.executable, "-m", "podlink", "run", "--redis-url", redis.url, "--http-port", str(port)]
    operator = spawn(command, log_path=log_path, env=operator_environment(cluster))

    def ready() -> bool:
        check(operator, "the operator")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == http.HTTPStatus.OK
        finally:
            connection.close()

    try:
        until(ready, TIMEOUT_SECONDS, f"the operator to be ready (log: {log_path})", retry_on=(OSError,))
    except BaseException:
        operator.kill()
        raise
    return operator


def operator_environment(cluster: Cluster) -> Mapping[str, str]:
    """The user's settings for operators elsewhere (PODLINK_NAMESPACE, …) are not meant for this one."""
    inherited = {name: value for name, value in cluster.environment.items() if not name.startswith("PODLINK_")}
    # The Kubernetes client writes the certificates of a kubeconfig to temporary files; killed, it would leave them.
    return inherited | {"TMPDIR": tempfile.gettempdir()}


def deploy_samples(running: Sandbox) -> None:
    """Apply the sample service and PodLinks, and wait until its pods are Ready and the PodLinks Linked."""
    say("deploying the samples")
    cluster = running.cluster
    cluster.kubectl("wait", "--for=create", "--timeout=30s", "serviceaccount/default", "-n", NAMESPACE)
    try:
        timeout = f"--timeout={TIMEOUT_SECONDS}s"
        cluster.kubectl("apply", "-n", NAMESPACE, "-f", SAMPLES / "lobby.yaml")
        # A PodLink that wants the least loaded Ready pod takes the first one when it is applied before the others are.
        cluster.kubectl("rollout", "status", "statefulset/lobby", "-n", NAMESPACE, timeout)
        cluster.kubectl("apply", "-n", NAMESPACE, "-f", SAMPLES / "podlinks.yaml")
        linked = "--for=jsonpath={.status.phase}=Linked"
        cluster.kubectl("wait", linked, "podlinks", "--all", "-n", NAMESPACE, timeout)
    except KubectlError:
        check(running.operator, "the operator")
        raise


def instructions(running: Sandbox) -> str:
    """How to go on from a second terminal."""
    lines = [
        "In a second terminal:",
        f"  cd {shlex.quote(str(REPOSITORY))}",
        f"  export KUBECONFIG={shlex.quote(str(running.directory / 'kubeconfig'))}",
    ]
    if shutil.which("kubectl") is None or shutil.which("podlink") is None:
        lines.append(f"  export PATH={shlex.quote(str(KUBECTL.parent))}:$PATH")
    lines += [
        "  kubectl get podlinks",
        "  kubectl describe podlink player-7",
        "  kubectl scale statefulset lobby --replicas=2",
        "  kubectl delete podlink player-42",
        "  kubectl apply -f deploy/samples/podlinks.yaml",
        f"  podlink status --redis-url {running.redis.url}",
        "",
        "The pods are simulated: they become Ready, but run nothing.",
        f"Logs: {running.operator.log_path}, {running.redis.log_path}, {running.cluster.directory}/*.log",
        "Ctrl-C here ends it all.",
    ]
    return "\n".join(lines)


async def show(running: Sandbox) -> None:
    """Show the state as it changes: a table on a terminal, until that is closed; elsewhere lines, for ever.

    Raises:
        RunError: the operator or a server ended.
    """
    # Read by the client that finds its cluster as the CLI does; this process alone sees the change.
    os.environ["KUBECONFIG"] = str(running.cluster.kubeconfig)
    reader = await Reader.connect(load_access())
    try:
        async with StatefulExecutor.from_url(running.redis.url) as executor:
            if sys.stdout.isatty() and not console.is_dumb_terminal:
                await show_table(running, reader, executor)
            else:
                await show_lines(running, reader, executor)
    finally:
        await reader.aclose()


async def show_table(running: Sandbox, reader: Reader, executor: StatefulExecutor) -> None:
    with Live(console=console, auto_refresh=False) as live:
        # Of a closed terminal, the SIGHUP goes to its session leader alone.
        while sys.stdout.isatty():
            check_all(running)
            try:
                picture = status.draw(await status.gather(reader, executor, [NAMESPACE]))
            except PodLinkError as error:
                picture = f"{error}"
            live.update(picture, refresh=True)
            await asyncio.sleep(REFRESH_SECONDS)


async def show_lines(running: Sandbox, reader: Reader, executor: StatefulExecutor) -> None:
    shown: dict[str, str] = {}
    failure = ""
    while True:
        check_all(running)
        try:
            lines = status.lines(await status.gather(reader, executor, [NAMESPACE]))
        except PodLinkError as error:
            if str(error) != failure:
                say(f"cannot read the state: {error}")
            failure = str(error)
        else:
            failure = ""
            current = {subject(line): line for line in lines}
            for key in shown.keys() - current.keys():
                say(f"{key} is gone")
            for key, line in current.items():
                if shown.get(key) != line:
                    say(line)
            shown = current
        await asyncio.sleep(REFRESH_SECONDS)


def subject(line: str) -> str:
    """What a line is about: its first two words, kind and name."""
    return " ".join(line.split()[:2])


def check_all(running: Sandbox) -> None:
    check(running.operator, "the operator")
    check(running.redis.process, "Valkey")
    running.cluster.check_alive()


def check(process: Process, what: str) -> None:
    """Raise RunError, with the end of its log, when a process has ended."""
    if not process.alive:
        raise RunError(f"{what} ended with exit code {process.returncode}\n{process.log_tail()}")


def say(text: str) -> None:
    """Print a line at once, also into a pipe."""
    console.print(text)
    console.file.flush()


if __name__ == "__main__":
    main()
