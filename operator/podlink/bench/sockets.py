"""The limit: requests packed in advance, sent over plain sockets, their replies only compared.

No client that does anything with a call or a reply can be faster, so this is what the others are measured against. One
thread with `select`, as an event loop is one thread.
"""

import selectors
import socket
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import cycle
from typing import Any, Final

from podlink.bench.plan import CONNECTIONS, NotMeasuredError, Plan, link_request, read_request, uids
from podlink.store.batching.exchange import Request, pack

_PATIENCE_SECONDS: Final = 10
_CHUNK: Final = 1 << 17
_READ: Final = 1000


_LINKED: Final = b"$1\r\n1\r\n"
"""The link is there and points to this pod already: what each call returns, and each read."""


def connect(plan: Plan) -> socket.socket:
    """A socket that is ready for requests.

    Raises:
        NotMeasuredError: the connection is to be encrypted, or the server refused the credentials or the database.
        OSError: it cannot be reached.
    """
    if plan.encrypted:
        raise NotMeasuredError("plain sockets know no TLS")
    server = plan.server
    if "path" in server:
        raw = socket.socket(socket.AF_UNIX)
        raw.connect(server["path"])
    else:
        address = server.get("host", "localhost"), server.get("port", 6379)
        raw = socket.create_connection(address, timeout=_PATIENCE_SECONDS)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # With a timeout, each receive would be two system calls. Waiting is done by select.
    raw.settimeout(None)
    for request in _introduction(server):
        raw.sendall(pack([request]))
        answer = raw.recv(_CHUNK)
        if not answer.startswith(b"+OK"):
            raw.close()
            raise NotMeasuredError(f"{request[0]}: the server says {answer.decode(errors='replace').strip()!r}")
    return raw


def _introduction(server: dict[str, Any]) -> Iterator[Request]:
    if server.get("password"):
        yield tuple(filter(None, ("AUTH", server.get("username"), server["password"])))
    if server.get("db"):
        yield ("SELECT", server["db"])


def link_rate(plan: Plan, depth: int) -> float:
    """Link calls a second over 50 connections, `depth` in flight on each."""
    users = uids(plan)
    groups = [users[start : start + depth] for start in range(0, len(users) - depth + 1, depth)]
    batches = [pack([link_request(plan, user) for user in group]) for group in groups]
    return _rate(plan, batches, _LINKED * depth, depth)


def _rate(plan: Plan, batches: Sequence[bytes], expected: bytes, depth: int) -> float:
    outgoing = cycle(batches)
    with ExitStack() as stack, selectors.DefaultSelector() as selector:
        for _ in range(CONNECTIONS):
            connection = stack.enter_context(connect(plan))
            selector.register(connection, selectors.EVENT_READ, bytearray())
            connection.sendall(next(outgoing))
        _exchange(selector, outgoing, expected, plan.warm_up_seconds)
        started = time.perf_counter()
        done = _exchange(selector, outgoing, expected, plan.seconds)
        return done * depth / (time.perf_counter() - started)


def _exchange(selector: selectors.BaseSelector, outgoing: Iterator[bytes], expected: bytes, seconds: float) -> int:
    """Keep every connection busy for so long; return how many batches came back."""
    done = 0
    ends = time.perf_counter() + seconds
    while not done or time.perf_counter() < ends:
        ready = selector.select(_PATIENCE_SECONDS)
        if not ready:
            raise TimeoutError(f"the server did not answer within {_PATIENCE_SECONDS} seconds")
        for key, _ in ready:
            connection, received = key.fileobj, key.data
            received += connection.recv(_CHUNK)  # type: ignore[union-attr] # registered above
            if len(received) < len(expected):
                continue
            if received != expected:
                raise NotMeasuredError(f"the server answered {bytes(received[:200])!r}")
            received.clear()
            connection.sendall(next(outgoing))  # type: ignore[union-attr]
            done += 1
    return done


def read_microseconds(plan: Plan) -> float:
    """How long a GET takes over one connection, one at a time: the median."""
    taken: list[float] = []
    requests = cycle([pack([read_request(plan, user)]) for user in uids(plan)[:_READ]])
    with connect(plan) as connection:
        ends = time.perf_counter() + plan.warm_up_seconds + plan.seconds
        starts = ends - plan.seconds
        now = time.perf_counter()
        while now < ends:
            connection.sendall(next(requests))
            answer = connection.recv(_CHUNK)
            if answer != _LINKED:
                raise NotMeasuredError(f"the server answered {answer[:200]!r}")
            before, now = now, time.perf_counter()
            if now > starts:
                taken.append((now - before) * 1e6)
    return statistics.median(taken)
