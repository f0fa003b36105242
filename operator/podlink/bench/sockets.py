"""The limit: requests packed in advance, sent over plain sockets, their replies only compared.

No client that does anything with a call or a reply can be faster, so this is what the others are measured against. One
thread with `select`, as an event loop is one thread.
"""

import selectors
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import cycle
from typing import Any, Final

import hiredis

from podlink.bench.plan import CONNECTIONS, Plan, link_request, read_request, uids

_PATIENCE_SECONDS: Final = 10
_CHUNK: Final = 1 << 17


class UnexpectedReplyError(Exception):
    """The server answered something else than what is measured."""


def pack(requests: Sequence[tuple[str | int, ...]]) -> bytes:
    """Requests as they go over the wire."""
    # Its stub says tuple[T] where a tuple of any length is meant.
    return b"".join(hiredis.pack_command(request) for request in requests)  # type: ignore[arg-type]


def connect(plan: Plan) -> socket.socket:
    """A socket that is ready for requests.

    Raises:
        UnexpectedReplyError: the server refused the credentials or the database.
        OSError: it cannot be reached.
    """
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
            raise UnexpectedReplyError(f"{request[0]}: the server says {answer.decode(errors='replace').strip()!r}")
    return raw


def _introduction(server: dict[str, Any]) -> Iterator[tuple[str | int, ...]]:
    if server.get("password"):
        yield tuple(filter(None, ("AUTH", server.get("username"), server["password"])))
    if server.get("db"):
        yield ("SELECT", server["db"])


def link_rate(plan: Plan, depth: int) -> float:
    """Link calls a second over 50 connections, `depth` in flight on each."""
    users = uids(plan)
    groups = [users[start : start + depth] for start in range(0, len(users) - depth + 1, depth)]
    batches = [pack([link_request(plan, user) for user in group]) for group in groups]
    # The link is there and points to this pod already, so that is what each call returns.
    return _rate(plan, batches, b"$1\r\n1\r\n" * depth, depth)


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
    while time.perf_counter() < ends:
        ready = selector.select(_PATIENCE_SECONDS)
        if not ready:
            raise TimeoutError(f"the server did not answer within {_PATIENCE_SECONDS} seconds")
        for key, _ in ready:
            connection, received = key.fileobj, key.data
            received += connection.recv(_CHUNK)  # type: ignore[union-attr] # registered above
            if len(received) < len(expected):
                continue
            if received != expected:
                raise UnexpectedReplyError(f"the server answered {bytes(received[:200])!r}")
            received.clear()
            connection.sendall(next(outgoing))  # type: ignore[union-attr]
            done += 1
    return done


def read_microseconds(plan: Plan) -> list[float]:
    """How long each GET takes over one connection, one at a time."""
    taken: list[float] = []
    requests = cycle([pack([read_request(plan, user)]) for user in uids(plan)[:1000]])
    with connect(plan) as connection:
        ends = time.perf_counter() + plan.warm_up_seconds + plan.seconds
        starts = ends - plan.seconds
        now = time.perf_counter()
        while now < ends:
            connection.sendall(next(requests))
            answer = connection.recv(_CHUNK)
            if answer != b"$1\r\n1\r\n":
                raise UnexpectedReplyError(f"the server answered {answer[:200]!r}")
            before, now = now, time.perf_counter()
            if now > starts:
                taken.append((now - before) * 1e6)
    return taken
