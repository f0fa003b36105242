"""A URL that leads to a server of another kind: the error says which kind it is, and how its URL looks."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from podlink import PodLinkError, StatefulExecutor, sync
from sandbox.redis_sentinel import SentinelSet
from sandbox.redis_servers import RedisServer
from store.harness import NS, SVC, UID

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def plain() -> Iterator[str]:
    with RedisServer() as server:
        yield f"127.0.0.1:{server.port}"


@pytest.fixture(scope="module")
def sentinel() -> Iterator[str]:
    with SentinelSet() as servers:
        yield servers.url.removeprefix("redis+sentinel://").partition(",")[0]


@pytest.mark.parametrize("flavour", ["asyncio", "blocking"])
@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("redis://{plain}/99", "the server has no such database"),
        ("redis+cluster://{plain}", "this is no cluster; its URL begins with redis://"),
        ("redis+sentinel://{plain}/lobby", "this is no Sentinel; of a plain server, the URL begins with redis://"),
        ("redis://{sentinel}/0", "this is a Sentinel, whose URL begins with redis+sentinel:// and ends with /service"),
    ],
)
async def test_the_error_says_what_answers_there(plain: str, sentinel: str, flavour: str, url: str, told: str) -> None:
    url = url.format(plain=plain, sentinel=sentinel)
    if flavour == "asyncio":
        async with StatefulExecutor.from_url(url) as executor:
            with pytest.raises(PodLinkError, match=re.escape(told)):
                await executor.get_linked_pod(NS, UID, SVC)
    else:
        with sync.StatefulExecutor.from_url(url) as blocking, pytest.raises(PodLinkError, match=re.escape(told)):
            blocking.get_linked_pod(NS, UID, SVC)
