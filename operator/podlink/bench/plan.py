"""What every contender of a run has in common: the server, the links, the script and its arguments.

All of them work on the same links, filled in beforehand, whose names have the same length: what differs is the client.
"""

import functools
import random
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
from redis.connection import parse_url

from podlink.domain import keys
from podlink.store.batching.exchange import Request
from podlink.store.operations import scripts

SERVICE: Final = "lobby"
POD: Final = 1
"""All links point to this one: what a call costs does not depend on it."""

PODS: Final = 10
"""Of the service, all of them routable."""

UID_DIGITS: Final = 12
"""As redis-benchmark writes its random numbers."""

PIPELINE: Final = 100
"""Calls that travel together where a contender sends many at once."""

CONNECTIONS: Final = 50
"""Also the number of tasks, and of pipelines in flight, so that each has the same number of requests open."""

_WARM_UP: Final = 0.2
"""Part of the measured time that goes by before it."""


class NotMeasuredError(Exception):
    """A contender cannot be measured, or not against this server; the text says why."""


class Plan(msgspec.Struct, frozen=True):
    """What a worker process is told.

    Attributes:
        url: of the server, with its password; it travels through a pipe, never as an argument.
        namespace: of everything that is written.
        links: how many there are.
        memory_links: how many the memory of the server is measured with.
        seconds: of each measurement.
    """

    url: str
    namespace: str
    links: int
    memory_links: int
    seconds: float

    @property
    def warm_up_seconds(self) -> float:
        """How long a contender works before it is measured."""
        return self.seconds * _WARM_UP

    @property
    def extra_uid(self) -> str:
        """A user beside those that have links, whose link moves."""
        return uid(self.users)

    @property
    def users(self) -> int:
        """How many have a link at some time of a run, without that one."""
        return max(self.links, self.memory_links)

    @property
    def server(self) -> dict[str, Any]:
        """The URL as arguments of a redis-py connection."""
        return dict(parse_url(self.url))  # type: ignore[no-untyped-call]

    @property
    def encrypted(self) -> bool:
        """Whether the URL asks for TLS."""
        return urlsplit(self.url).scheme == "rediss"


def uid(number: int) -> str:
    """Name of a user."""
    return f"{number:0{UID_DIGITS}d}"


@functools.cache
def uids(plan: Plan) -> Sequence[str]:
    """All users, in one random order that every contender follows."""
    numbers = list(range(plan.links))
    random.Random(plan.links).shuffle(numbers)  # noqa: S311 - an order, no secret
    return tuple(map(uid, numbers))


def link_request(plan: Plan, user: str, *, persist_seconds: int = keys.PERMANENT) -> Request:
    """The words of one call that links a user, as the executor sends them."""
    return ("EVALSHA", *link_arguments(plan, user, persist_seconds=persist_seconds))


def link_arguments(plan: Plan, user: str, *, persist_seconds: int = keys.PERMANENT) -> Request:
    """The same for redis-py's `evalsha`: digest, number of keys, keys, arguments."""
    of_link = (
        keys.link_key(plan.namespace, user, SERVICE),
        keys.link_hash_key(plan.namespace, user),
        keys.load_key(plan.namespace, SERVICE),
        keys.expiry_key(plan.namespace, SERVICE),
    )
    return (scripts.SET_LINK.sha1, len(of_link), *of_link, SERVICE, POD, persist_seconds)


def read_request(plan: Plan, user: str) -> Request:
    """The words of one read."""
    return ("GET", keys.link_key(plan.namespace, user, SERVICE))
