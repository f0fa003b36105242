"""The operator as a process of its own, seen through its endpoints and its log."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sandbox.processes import eventually, spawn, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandbox.cluster import Cluster
    from sandbox.processes import Process


WARNING = "warning: "


class Operator:
    """`podlink run` as a process of its own."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.port = 0
        """Of 127.0.0.1; 0 before `await_start`."""

    def await_start(self) -> None:
        """Wait until it listens."""

        def started() -> Any:
            if not self.process.alive:
                raise AssertionError(f"the operator ended\n{self.process.log_tail()}")
            return next((entry["http_port"] for entry in self.log() if "http_port" in entry), None)

        self.port = until(started, 60, "the operator to start")

    def await_ready(self) -> None:
        """Wait until /readyz says so."""
        eventually(self.readyz, (200, "ok\n"), timeout=60)

    def readyz(self) -> tuple[int, str]:
        """Status and text of /readyz, without its warnings."""
        status, text = self._get("/readyz")
        lines = text.splitlines(keepends=True)
        return status, "".join(line for line in lines if not line.startswith(WARNING))

    def warnings(self) -> list[str]:
        """The warnings of /readyz: the Redis of most tests keeps nothing on disk."""
        lines = self._get("/readyz")[1].splitlines()
        return [line.removeprefix(WARNING) for line in lines if line.startswith(WARNING)]

    def await_reason(self, told: str, timeout: float = 60) -> str:
        """Wait until it listens and is not ready for that reason, and return all that /readyz says."""
        self.await_start()

        def reason() -> str:
            status, text = self.readyz()
            return text if status == 503 and told in text else ""

        return until(reason, timeout, f"/readyz to say {told!r}")

    def healthz(self) -> tuple[int, str]:
        """Status and text of /healthz."""
        return self._get("/healthz")

    def metrics(self) -> str:
        """The text of /metrics."""
        return self._get("/metrics")[1]

    def metric(self, sample: str) -> float:
        """One sample of /metrics, by its name and labels as they are printed there; 0 before it is there."""
        found = re.search(rf"^{re.escape(sample)} (\S+)$", self.metrics(), re.MULTILINE)
        return float(found[1]) if found else 0

    def await_sweeps(self, number: int, cause: str = "resync") -> None:
        """Wait until that many more sweeps are through."""
        sample = f'podlink_sweep_seconds_count{{cause="{cause}"}}'
        before = self.metric(sample)
        until(lambda: self.metric(sample) >= before + number, 30, f"{number} more sweeps")

    def log(self) -> list[dict[str, Any]]:
        """What it logged, entry by entry."""
        entries = []
        for line in self.process.log_path.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):  # the last line may be half written
                entries.append(json.loads(line))
        return entries

    def said(self, text: str) -> list[str]:
        """The messages that it logged with that text in them."""
        return [entry["message"] for entry in self.log() if text in entry["message"]]

    def faults(self) -> list[str]:
        """What it logged and must never log here.

        Errors, tracebacks, anything that is no log entry (a warning of the interpreter), anything that a library says
        instead of us, and that the cluster was restored from a backup, which never happens here.
        """
        return [line for line in self.process.log_path.read_text().splitlines() if _is_fault(line)]

    def _get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except urllib.error.URLError as error:
            raise AssertionError(f"{path} cannot be reached: {error.reason}\n{self.process.log_tail()}") from error


def _is_fault(line: str) -> bool:
    try:
        entry = json.loads(line)
    except ValueError:
        return True
    ours = entry["logger"].startswith("podlink")
    return not ours or entry["level"] == "error" or "exception" in entry or "went back" in entry["message"]


@contextlib.contextmanager
def start_operator(cluster: Cluster, *flags: str, **environment: str) -> Iterator[Operator]:
    """Start an operator with these flags; stopped by SIGTERM at the end, as Kubernetes does."""
    argv = [sys.executable, "-m", "podlink", "run", "--http-port", "0", "--log-format", "json", *flags]
    with tempfile.TemporaryDirectory(prefix="podlink-operator-") as directory:
        process = spawn(argv, log_path=Path(directory) / "operator.log", env={**cluster.environment, **environment})
        try:
            yield Operator(process)
        finally:
            process.stop(grace_seconds=20)
            print(process.log_tail(100))  # noqa: T201 - pytest shows it beside a failure, and only there


@contextlib.contextmanager
def running_operator(cluster: Cluster, *flags: str, **environment: str) -> Iterator[Operator]:
    """Start an operator, wait until it is ready, and see at the end that it ran without a fault and stops in order."""
    with start_operator(cluster, *flags, **environment) as operator:
        operator.await_start()
        operator.await_ready()
        yield operator
        assert operator.process.stop(grace_seconds=20) == 0, operator.process.log_tail()
        assert not operator.faults(), "\n".join(operator.faults())
