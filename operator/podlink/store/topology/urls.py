"""What a Redis URL names (a server, a primary that Sentinels know, or a cluster), and the redis-py client for it."""

import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

import redis
import redis.asyncio
import redis.asyncio.cluster
import redis.asyncio.connection
import redis.asyncio.retry
import redis.asyncio.sentinel
import redis.cluster
import redis.connection
import redis.retry
import redis.sentinel
from redis.exceptions import AuthenticationError, RedisError
from redis.sentinel import MasterNotFoundError

from podlink.domain.errors import InvalidArgument
from podlink.store.batching.outcomes import NO_HOST

_WANTED: Final = (
    "use redis://host:port/db, rediss://host:port/db or unix:///path/to/socket,"
    " redis+sentinel://host:port,host:port/service/db or redis+cluster://host:port,host:port"
)
_PLAIN: Final = ("redis", "rediss", "unix")
_PORTS: Final = {"sentinel": 26379, "cluster": 6379}
_NO_ANSWER: Final = (redis.ConnectionError, redis.TimeoutError)
_TIMEOUTS: Final = ("socket_timeout", "socket_connect_timeout")
_UNKNOWN_SETTING: Final = re.compile(r"unexpected keyword argument '(\w+)'")


class _AsyncioSentinel(redis.asyncio.sentinel.Sentinel):
    """Says which Sentinel did not name the primary, and why; redis-py says how it had connected to them."""

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        """The address of the primary, from the first Sentinel that knows it; that one is asked first from then on."""
        asked: dict[str, Exception | None] = {}
        for sentinel in self.sentinels:
            try:
                masters = await sentinel.sentinel_masters()
            except _NO_ANSWER as error:
                asked[_place(sentinel)] = error
                continue
            if primary := _named_by(sentinel, masters, service_name, self):
                return primary
            asked[_place(sentinel)] = None
        raise _no_primary(service_name, asked)


class _BlockingSentinel(redis.sentinel.Sentinel):
    """The same."""

    def discover_master(self, service_name: str) -> tuple[str, int]:
        """The same."""
        asked: dict[str, Exception | None] = {}
        for sentinel in self.sentinels:
            try:
                masters = sentinel.sentinel_masters()
            except _NO_ANSWER as error:
                asked[_place(sentinel)] = error
                continue
            if primary := _named_by(sentinel, masters, service_name, self):
                return primary
            asked[_place(sentinel)] = None
        raise _no_primary(service_name, asked)


def _named_by(sentinel: Any, masters: Any, service: str, sentinels: Any) -> tuple[str, int] | None:
    """The address of the primary in a Sentinel's answer, and that Sentinel first from then on; None: it knows none."""
    state = masters.get(service)
    if not (state and sentinels.check_master_state(state, service)):
        return None
    sentinels.sentinels = [sentinel, *(other for other in sentinels.sentinels if other is not sentinel)]
    return sentinels._force_master_ip or state["ip"], state["port"]  # noqa: SLF001 - redis-py's own setting


def _place(sentinel: redis.Redis | redis.asyncio.Redis) -> str:
    return "{host}:{port}".format_map(sentinel.connection_pool.connection_kwargs)


def _no_primary(service: str, asked: Mapping[str, Exception | None]) -> MasterNotFoundError:
    said = [f"{place}: {str(error or 'knows none that is up').rstrip('.')}" for place, error in asked.items()]
    none = MasterNotFoundError(f"no Sentinel names a primary of {service!r} ({'; '.join(said)})")
    refused = [error for error in asked.values() if isinstance(error, AuthenticationError)]
    none.__cause__ = refused[0] if refused else None
    return none


class _ClusterMap(redis.cluster.RedisCluster):
    """Asks servers in turn for their cluster's map, and nobody for anything else.

    redis-py's own asks one of them for all of its commands too, before it is of any use, and has to be told of none.
    """

    def __init__(self, hosts: Sequence[tuple[str, int]], settings: dict[str, Any]) -> None:
        self._of_calls = {name: settings[name] for name in _TIMEOUTS if name in settings}
        super().__init__(
            startup_nodes=[redis.cluster.ClusterNode(host, port) for host, port in hosts],
            address_remap=_complete(hosts),
            **_asked_in_turn(settings, len(hosts)),
        )

    def command(self, **_options: Any) -> dict[str, dict[str, Any]]:
        """All commands of the server, for those who send by this client."""
        return {}

    def get_redis_connection(self, node: redis.cluster.ClusterNode) -> redis.Redis:
        """A client for calls to a server, which have more time than those who ask for the map."""
        pool = super().get_redis_connection(node).connection_pool
        like = pool.connection_kwargs | self._of_calls
        return redis.Redis(connection_pool=redis.ConnectionPool(pool.connection_class, pool.max_connections, **like))


def _asyncio_cluster(hosts: Sequence[tuple[str, int]], settings: dict[str, Any]) -> redis.asyncio.RedisCluster:
    nodes = [redis.asyncio.cluster.ClusterNode(host, port) for host, port in hosts]
    # No call goes through it, so what follows are the time-outs of asking for the map.
    return redis.asyncio.RedisCluster(
        startup_nodes=nodes, address_remap=_complete(hosts), **_asked_in_turn(settings, len(hosts))
    )


def _complete(hosts: Sequence[tuple[str, int]]) -> Callable[[tuple[str | None, int]], tuple[str, int]]:
    """Return what gives a host to servers that the map of a cluster names by their port alone: that of the URL.

    With `cluster-preferred-endpoint-type unknown-endpoint`, all servers are behind one host. With `hostname`, the map
    has "?" for a server without one.
    """
    behind = hosts[0][0]

    def completed(address: tuple[str | None, int]) -> tuple[str, int]:
        host, port = address
        return (behind, port) if host in NO_HOST else (str(host), port)

    return completed


def _blocking_cluster(hosts: Sequence[tuple[str, int]], settings: dict[str, Any]) -> Callable[[], redis.RedisCluster]:
    """It connects when it is made, and leaves settings aside that it does not know."""
    known = {*inspect.signature(redis.RedisCluster).parameters, *redis.cluster.REDIS_ALLOWED_KEYS}
    for name in settings:
        if name not in known:
            raise TypeError(f"unexpected keyword argument {name!r}")
    return functools.partial(_ClusterMap, hosts, settings)


class Flavour(NamedTuple):
    """The classes of redis-py that open connections, asyncio's or the blocking ones."""

    client: Any
    pool: Any
    sentinel: Any
    cluster: Callable[[Sequence[tuple[str, int]], dict[str, Any]], Any]
    parse_url: Any
    retry: Any


ASYNCIO: Final = Flavour(
    redis.asyncio.Redis,
    redis.asyncio.ConnectionPool,
    _AsyncioSentinel,
    _asyncio_cluster,
    redis.asyncio.connection.parse_url,
    redis.asyncio.retry.Retry,
)
BLOCKING: Final = Flavour(
    redis.Redis,
    redis.ConnectionPool,
    _BlockingSentinel,
    _blocking_cluster,
    redis.connection.parse_url,
    redis.retry.Retry,
)


class _Target(NamedTuple):
    kind: str
    hosts: Sequence[tuple[str, int]]
    service: str
    """That Sentinels watch; else empty."""
    database: int | None
    """None where the URL names none."""
    plain: str
    """The same as a URL of one server, without hosts and path: user, password and settings."""
    query: dict[str, str]
    """The settings in the URL, but for those of the Sentinels."""
    sentinel_login: dict[str, str]
    encrypted: bool


def open_client(flavour: Flavour, url: str, settings: dict[str, Any]) -> Any:
    """Make a redis-py client, which is not connected yet; or, of a blocking cluster's, the function that makes it.

    Args:
        flavour: asyncio's or the blocking classes.
        url: what to connect to; what it says about a setting wins.
        settings: of redis-py's connections.

    Raises:
        InvalidArgument: the URL or a setting cannot be used. The text never repeats the URL: it may hold a password.
    """
    target = _read(url)
    _check_settings(flavour, target, settings)
    try:
        match target.kind:
            case "sentinel":
                return _sentinel(flavour, target, settings)
            case "cluster":
                return flavour.cluster(target.hosts, _options(flavour, target, settings))
            case _:
                return _server(flavour, url, settings)
    except (TypeError, ValueError, RedisError) as error:
        if unknown := _UNKNOWN_SETTING.search(str(error)):
            raise _refused(unknown[1], target, "is no setting that redis-py knows here") from None
        raise InvalidArgument(f"url or options cannot be used: {error}", argument="url") from None


def _check_settings(flavour: Flavour, target: _Target, settings: dict[str, Any]) -> None:
    """Refuse what redis-py would leave aside without a word, or stumble over at the first call."""
    given = settings | target.query
    if not isinstance(given["retry"], flavour.retry):
        raise _refused("retry", target, f"must be a {flavour.retry.__module__}.Retry")
    if flavour is ASYNCIO and "max_connections" in given:
        what = "is of the blocking executor: here all tasks share one connection to each server"
        raise _refused("max_connections", target, what)
    if target.kind == "cluster" and given.get("db"):
        raise _refused("db", target, "names a database, and a cluster has none")
    for name in given:
        if name.startswith("ssl") and not target.encrypted:
            raise _refused(name, target, "is for TLS: use rediss://, rediss+sentinel:// or rediss+cluster://")
    for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"):
        path = given.get(name)
        # At the first call, OpenSSL would say that a file is missing, and not which.
        if isinstance(path, str) and not Path(path).is_file():
            raise InvalidArgument(f"{name} names no file: {path}", argument=name)


def _refused(name: str, target: _Target, what: str) -> InvalidArgument:
    return InvalidArgument(f"{name} {what}", argument="url" if name in target.query else name)


def _server(flavour: Flavour, url: str, settings: dict[str, Any]) -> Any:
    # With RESP3, redis-py expects server pushes, and then no longer notices that an idle connection was closed.
    pool = flavour.pool.from_url(url, **({"protocol": 2} | settings))
    # An unknown setting would otherwise show at the first call only.
    pool.connection_class(**pool.connection_kwargs)
    return flavour.client.from_pool(pool)


def _sentinel(flavour: Flavour, target: _Target, settings: dict[str, Any]) -> Any:
    options = _options(flavour, target, settings)
    bounds = {
        name: value for name, value in options.items() if name.startswith(("socket_", "ssl", "retry", "protocol"))
    }
    bounds = _asked_in_turn(bounds, len(target.hosts)) | target.sentinel_login
    sentinel = flavour.sentinel(target.hosts, sentinel_kwargs=bounds, **options)
    database = settings.get("db", 0) if target.database is None else target.database
    client = sentinel.master_for(target.service, db=database)
    client.connection_pool.connection_class(**client.connection_pool.connection_kwargs)
    return client


def _asked_in_turn(settings: Mapping[str, Any], servers: int) -> dict[str, Any]:
    """Of servers that are asked in turn: those that hang must leave time for one that answers, and for what follows."""
    shorter = {name: settings[name] / (servers + 1) for name in _TIMEOUTS if settings.get(name)}
    return {**settings, **shorter}


def _options(flavour: Flavour, target: _Target, settings: dict[str, Any]) -> dict[str, Any]:
    options = {"protocol": 2} | settings | flavour.parse_url(target.plain)
    if options.pop("connection_class", None):
        options["ssl"] = True
    return {name: value for name, value in options.items() if name not in {"host", "port", "db"}}


def _read(url: str) -> _Target:
    # The errors of urllib quote the part of the URL that they choked on, so they are not chained.
    unreadable = InvalidArgument(f"url cannot be read as a Redis URL: {_WANTED}", argument="url")
    try:
        parts = urlsplit(url if isinstance(url, str) else "//[")
    except ValueError:
        raise unreadable from None
    scheme, _, kind = parts.scheme.partition("+")
    if scheme not in _PLAIN or (kind and (kind not in _PORTS or scheme == "unix")):
        what = f"the scheme {parts.scheme!r}, which is not one of Redis" if parts.scheme else "no scheme"
        raise InvalidArgument(f"url has {what}: {_WANTED}", argument="url")
    if "@" in f"{parts.path}{parts.query}{parts.fragment}":
        # An unescaped / ? or # ends the host, so that what stands here is likely to be a part of the password.
        raise InvalidArgument(
            "url has an @ behind the host: percent-encode / ? # @ : in user and password (%2F %3F %23 %40 %3A)",
            argument="url",
        )
    try:
        if not kind:
            _ = parts.port
        hosts = [_address(host, _PORTS[kind]) for host in _hosts(parts.netloc)] if kind else []
    except ValueError:
        raise unreadable from None
    path = [unquote(part) for part in parts.path.strip("/").split("/") if part]
    query = dict(parse_qsl(parts.query))
    service = path.pop(0) if kind == "sentinel" and path else ""
    if kind == "sentinel" and not service:
        raise InvalidArgument(f"url names no service that the Sentinels watch: {_WANTED}", argument="url")
    database = _database(kind, "" if scheme == "unix" else "/".join(path), query.get("db", ""))
    login = {name: query.pop(f"sentinel_{name}") for name in ("username", "password") if f"sentinel_{name}" in query}
    user = parts.netloc.rpartition("@")[0]
    plain = urlunsplit((scheme, f"{user}@localhost" if user else "localhost", "", urlencode(query), ""))
    return _Target(kind or "server", hosts, service, database, plain, query, login, scheme == "rediss")


def _hosts(netloc: str) -> list[str]:
    return netloc.rpartition("@")[2].split(",")


def _address(text: str, default_port: int) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError("a host is missing")
    return parts.hostname, parts.port or default_port


def _database(kind: str, *named: str) -> int | None:
    """The number of the database, which path and query may name."""
    databases = [name for name in named if name]
    for name in databases:
        if kind == "cluster":
            raise InvalidArgument(f"url names the database {name!r}, and a cluster has none: {_WANTED}", argument="url")
        if not (name.isascii() and name.isdigit()):
            # redis-py would take database 0 instead, without a word.
            raise InvalidArgument(f"url names the database {name!r}, which is no number: {_WANTED}", argument="url")
    if len({int(name) for name in databases}) > 1:
        raise InvalidArgument(f"url names two databases, {' and '.join(databases)}", argument="url")
    return int(databases[0]) if databases else None
