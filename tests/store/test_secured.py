"""TLS, passwords and users of an ACL: who is let in, what the others are told, and that nobody's password is told."""

from __future__ import annotations

import asyncio
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import generate_latest

from podlink import InvalidArgument, PodLinkError, RedisUnavailable, ScriptError, StatefulExecutor, sync
from podlink.metrics import Metrics
from sandbox.redis_cluster import ClusterSet
from sandbox.redis_sentinel import SentinelSet
from sandbox.redis_servers import RedisServer, tls_options
from store.harness import LINK, NS, SVC, UID, Awaited, Topology, whole_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sandbox.certificates import RedisCertificates

PASSWORD = "correct-horse"
SENTINEL_PASSWORD = "purple-monkey"
WRONG = "battery-staple"


@pytest.fixture(scope="module")
def tls_server(certificates: RedisCertificates) -> Iterator[RedisServer]:
    with RedisServer("redis", tls=certificates) as running:
        yield running


async def refused(executor: Awaited) -> RedisUnavailable:
    """The error of a call that has certainly not been applied."""
    with pytest.raises(RedisUnavailable) as error:
        await executor.set_linked_pod(NS, UID, SVC, 1)
    assert error.value.maybe_applied is False
    return error.value


async def test_certificates_may_be_options_too(tls_server: RedisServer, connect: Callable[..., Awaited]) -> None:
    executor = connect(f"rediss://127.0.0.1:{tls_server.port}/0", **tls_options(tls_server.tls))
    await executor.set_linked_pod(NS, UID, SVC, 1)
    assert tls_server.ask("GET", LINK) == "1"


async def test_a_server_signed_by_another_authority_is_refused(
    tls_server: RedisServer, connect: Callable[..., Awaited], certificates: RedisCertificates
) -> None:
    options = tls_options(certificates) | {"ssl_ca_certs": str(certificates.other_authority)}
    error = await refused(connect(f"rediss://127.0.0.1:{tls_server.port}/0", **options))
    assert "certificate verify failed" in str(error).lower()


async def test_a_client_without_certificate_is_told_so(
    tls_server: RedisServer, connect: Callable[..., Awaited], certificates: RedisCertificates
) -> None:
    executor = connect(f"rediss://127.0.0.1:{tls_server.port}/0", ssl_ca_certs=str(certificates.authority))
    # With TLS 1.3 the server refuses after the handshake, and its reset may overtake the alert that says why.
    said = str(await refused(executor)).lower()
    assert "certificate" in said or "reset by peer" in said or "closed the connection" in said


async def test_a_file_that_is_missing_is_named(
    tls_server: RedisServer, connect: Callable[..., Awaited], tmp_path: Path
) -> None:
    with pytest.raises(PodLinkError, match=r"missing\.crt"):
        await connect(
            f"rediss://127.0.0.1:{tls_server.port}/0", ssl_ca_certs=str(tmp_path / "missing.crt")
        ).set_linked_pod(NS, UID, SVC, 1)


async def test_plain_text_to_a_server_with_tls(tls_server: RedisServer, connect: Callable[..., Awaited]) -> None:
    await refused(connect(f"redis://127.0.0.1:{tls_server.port}/0", timeout_seconds=2))


async def test_tls_to_a_server_without(
    own_server: Callable[..., RedisServer], connect: Callable[..., Awaited], certificates: RedisCertificates
) -> None:
    url = f"rediss://127.0.0.1:{own_server().port}/0"
    await refused(connect(url, timeout_seconds=2, **tls_options(certificates)))


async def test_a_user_with_the_wrong_password_is_told_so(
    own_server: Callable[..., RedisServer], connect: Callable[..., Awaited]
) -> None:
    server = own_server(users={"gate": f"on >{PASSWORD} ~* +@all"})
    for user, password in (("gate", WRONG), ("nobody", PASSWORD)):
        error = await refused(connect(server.url_as(user, password)))
        assert "refused the user name or the password" in str(error)
        assert password not in whole_text(error)


async def test_a_permission_that_is_missing_is_named(
    own_server: Callable[..., RedisServer], connect: Callable[..., Awaited]
) -> None:
    users = {
        "reader": f"on >{PASSWORD} ~sf:* +@all -@scripting",
        "elsewhere": f"on >{PASSWORD} ~other:* +@all",
    }
    server = own_server(users=users)
    for user in users:
        with pytest.raises(ScriptError, match=r"(?i)permission") as error:
            await connect(server.url_as(user, PASSWORD)).set_linked_pod(NS, UID, SVC, 1)
        assert error.value.script == "statefulSetLink"
        assert PASSWORD not in whole_text(error.value)
    assert await connect(server.url_as("reader", PASSWORD)).get_linked_pod(NS, UID, SVC) is None


@contextmanager
def unix_server(tmp_path: Path) -> Iterator[RedisServer]:
    """Asks for a password on a unix socket as well."""

    class OnASocket(RedisServer):
        @property
        def url(self) -> str:
            return f"unix://:{self._password}@{self.settings['unixsocket']}?db=0"

    with OnASocket(password=PASSWORD, settings={"unixsocket": str(tmp_path / "redis.sock")}) as running:
        yield running


@pytest.fixture(
    params=["redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster"]
)
def secured(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Topology]:
    """Servers of every scheme that ask for a password."""
    tls = request.getfixturevalue("certificates") if request.param.startswith("rediss") else None
    kind: Any = "redis" if tls else "valkey"
    make: dict[str, Callable[[], Any]] = {
        "redis": lambda: RedisServer(kind, password=PASSWORD, tls=tls),
        "unix": lambda: unix_server(tmp_path),
        "sentinel": lambda: SentinelSet(kind, password=PASSWORD, sentinel_password=SENTINEL_PASSWORD, tls=tls),
        "cluster": lambda: ClusterSet(kind, password=PASSWORD, tls=tls),
    }
    name = request.param.replace("rediss", "redis")
    with make[name.partition("+")[2] or name]() as running:
        yield running


async def test_passwords_are_kept_to_themselves(secured: Topology, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    metrics = Metrics()
    seen: list[str] = []

    def on_call(*told: object) -> None:
        seen.append(repr(told))
        metrics.redis_calls.labels(*told[::2]).observe(1)

    urls = [secured.url, secured.url.replace(PASSWORD, WRONG), secured.url.replace(SENTINEL_PASSWORD, WRONG)]
    async with StatefulExecutor.from_url(urls[0], timeout_seconds=2, on_call=on_call) as good:
        assert await good.set_linked_pod(NS, UID, SVC, 1) is None
        seen.append(repr(good))
        for url in dict.fromkeys(urls[1:]):
            if url == secured.url:
                continue
            with sync.StatefulExecutor.from_url(url, timeout_seconds=2, on_call=on_call) as blocking:
                with pytest.raises(RedisUnavailable, match=r"(?i)password.*Check the credentials") as error:
                    await asyncio.to_thread(blocking.get_linked_pod, NS, UID, SVC)
                seen += [whole_text(error.value), repr(blocking), repr(vars(blocking).keys())]
            async with StatefulExecutor.from_url(url, timeout_seconds=2, on_call=on_call) as executor:
                with pytest.raises(RedisUnavailable, match=r"(?i)password.*Check the credentials") as error:
                    await executor.set_linked_pod(NS, UID, SVC, 2)
                seen.append(whole_text(error.value))
        await asyncio.to_thread(secured.close)
        with pytest.raises(RedisUnavailable) as error:
            await good.set_linked_pod(NS, UID, SVC, 3)
        seen.append(whole_text(error.value))
    told = "".join([*seen, generate_latest(metrics.registry).decode(), caplog.text, *map(repr, logged(caplog))])
    assert "set_linked_pod" in told
    assert [password for password in (PASSWORD, SENTINEL_PASSWORD, WRONG) if password in told] == []


def logged(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """All that a log formatter could write."""
    return [record.__dict__ for record in caplog.records]


@pytest.mark.parametrize("kind", [StatefulExecutor, sync.StatefulExecutor])
@pytest.mark.parametrize(
    "url",
    [
        *(
            f"{scheme}://:{PASSWORD}@{rest}"
            for scheme in ("redis", "rediss", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")
            for rest in (
                f"host:{WRONG}/main",
                "host:99999/main",
                "[::1/main",
                "host:1/main/x/y",
                "host:1/main?no_such=1",
            )
        ),
        f"redis+sentinel://:{PASSWORD}@host:1",
        f"redis+sentinel://:{PASSWORD}@host:1/main/x?sentinel_password={WRONG}",
        f"redis+sentinel://host:1,,host:2/main?sentinel_password={WRONG}&no_such=1",
        f"redis+cluster://:{PASSWORD}@",
        f"redis+cluster://:{PASSWORD}@host:1/3",
        f"redis://:{PASSWORD}@host:1,host:2/0",
        f"redis+nonsense://:{PASSWORD}@host:1/0",
        f"redis://:{PASSWORD}@host:1/0?ssl_ca_certs={WRONG}",
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_repeating_it(kind: Any, url: str) -> None:
    with pytest.raises(InvalidArgument) as error:
        kind.from_url(url)
    assert error.value.argument == "url"
    assert PASSWORD not in whole_text(error.value)
    assert WRONG not in whole_text(error.value)


@pytest.mark.parametrize("kind", [StatefulExecutor, sync.StatefulExecutor])
def test_a_durability_that_is_none_is_refused(kind: Any) -> None:
    with pytest.raises(InvalidArgument, match="replicated") as error:
        kind.from_url("redis://127.0.0.1:1", durability="eventually")
    assert error.value.argument == "durability"
