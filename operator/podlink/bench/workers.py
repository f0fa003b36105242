"""The processes of the contenders, as the one that asks them sees them."""

import contextlib
import os
import select
import signal
import subprocess
import sys
from typing import IO, Final, Self

import msgspec

from podlink.bench.plan import Plan
from podlink.bench.worker import Answer

_END_SECONDS: Final = 5
_PATIENCE_SECONDS: Final = 60
_PATIENCE_SECONDS_A_LINK: Final = 500e-6
"""Of measuring memory, which writes every link four times."""


class Workers:
    """A process for each contender, from its first round on. Leaving the block ends them."""

    def __init__(self) -> None:
        self._running: dict[str, _Worker] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        for worker in self._running.values():
            worker.end(at_once=failed is not None)

    def ask(self, contender: str, plan: Plan) -> Answer:
        """Have a contender measured once; in its answer is what went wrong, if anything did."""
        if contender not in self._running:
            self._running[contender] = _Worker(contender)
        return self._running[contender].ask(plan)


class _Worker:
    def __init__(self, contender: str) -> None:
        # A session of its own, so that a Ctrl-C in the terminal does not reach it, and all it started ends with it.
        self._process = subprocess.Popen(  # noqa: S603 - this very package
            [sys.executable, "-m", "podlink.bench.worker", contender],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._questions = _there(self._process.stdin)
        self._answers = _there(self._process.stdout)

    def ask(self, plan: Plan) -> Answer:
        patience = _PATIENCE_SECONDS + 10 * plan.seconds + plan.memory_links * _PATIENCE_SECONDS_A_LINK
        try:
            self._questions.write(msgspec.json.encode(plan) + b"\n")
            self._questions.flush()
        except BrokenPipeError:
            return self._ended()
        if not select.select([self._answers], [], [], patience)[0]:
            self.end(at_once=True)
            return Answer(problem=f"no answer within {patience:.0f} seconds")
        line = self._answers.readline()
        return msgspec.json.decode(line, type=Answer) if line else self._ended()

    def end(self, *, at_once: bool) -> None:
        if self._process.returncode is not None:
            return
        # One that is idle ends when nobody can ask it any more.
        with contextlib.suppress(BrokenPipeError):
            self._questions.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0 if at_once else _END_SECONDS)
        if self._process.returncode is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._answers.close()

    def _ended(self) -> Answer:
        self.end(at_once=False)
        return Answer(problem=f"its process ended with exit code {self._process.returncode}")


def _there(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise ValueError("the process was started without this pipe")
    return stream
