"""A blocking call may be interrupted at any point: by a signal handler that raises, or by the end of a greenlet.

The executor then goes on: it has all its connections, gives right answers, and no call takes longer than its time-out.
"""

from __future__ import annotations

import dis
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from podlink import sync
from podlink.store import blocking
from store.harness import NS, SVC

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    import redis

    from store.harness import Topology

OURS = next(iter(blocking.__path__))
BEFORE_WITH = dis.opmap.get("BEFORE_WITH")
CONNECTIONS = 2
TIMEOUT_SECONDS = 5
PODS = {f"u{number}": number for number in range(5)}

one_server = pytest.mark.only_on("valkey", reason="permits are the same for each server")


class Interrupted(BaseException):
    """As KeyboardInterrupt and GreenletExit, it is no Exception."""


class Interrupter:
    """Raises before the step of that number in the code of the blocking executor; a step is one instruction."""

    def __init__(self, at: int) -> None:
        self._left = at

    def __enter__(self) -> None:
        sys.settrace(self._enter)

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _enter(self, frame: FrameType, _event: str, _argument: Any) -> Callable[..., Any] | None:
        if not frame.f_code.co_filename.startswith(OURS):
            return None
        frame.f_trace_opcodes = True
        return self._step

    def _step(self, frame: FrameType, event: str, _argument: Any) -> Callable[..., Any]:
        # Python handles no signal between the two instructions that enter a `with`.
        if event == "opcode" and frame.f_code.co_code[frame.f_lasti - 2] != BEFORE_WITH:
            self._left -= 1
            if self._left == 0:
                raise Interrupted
        return self._step


@pytest.fixture
def executor(server: Topology, raw: redis.Redis) -> Iterator[sync.StatefulExecutor]:
    url = server.url
    with sync.StatefulExecutor.from_url(url, max_connections=CONNECTIONS, timeout_seconds=TIMEOUT_SECONDS) as made:
        made.set_linked_pods(NS, PODS, SVC)
        yield made


def assert_all_is_well(executor: sync.StatefulExecutor) -> None:
    """With right answers, and without waiting for a connection that somebody else seems to have."""
    began = time.monotonic()
    assert [executor.get_linked_pod(NS, uid, SVC) for uid in PODS] == list(PODS.values())
    assert executor.get_linked_pods(NS, PODS, SVC) == {pod: [uid] for uid, pod in PODS.items()}
    assert time.monotonic() - began < TIMEOUT_SECONDS


@one_server
@pytest.mark.usefixtures("leaves_orphans")
def test_an_interruption_at_any_step_loses_nothing(executor: sync.StatefulExecutor) -> None:
    at, interrupted = 0, True
    while interrupted:
        at += 1
        try:
            with Interrupter(at):
                executor.get_linked_pod(NS, "u3", SVC)
            interrupted = False
        except Interrupted:
            pass
        assert_all_is_well(executor)
    assert at > 100, "the call has many steps"


@one_server
@pytest.mark.usefixtures("leaves_orphans")
# Files and sockets that redis-py had just opened are closed when Python deletes them.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_storm_of_alarms_loses_nothing(executor: sync.StatefulExecutor) -> None:
    """Wherever the interpreter handles signals, also within system calls and the modules that ours use."""
    previous = signal.signal(signal.SIGALRM, _raise)
    interruptions = 0
    end = time.monotonic() + 2
    try:
        while time.monotonic() < end:
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0005)
                # One may be swallowed: Python ignores what is raised while it deletes an object.
                while time.monotonic() < end:
                    assert executor.get_linked_pod(NS, "u3", SVC) == 3
            except Interrupted:
                interruptions += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert interruptions > 50
    assert_all_is_well(executor)


def _raise(*_: object) -> None:
    raise Interrupted
