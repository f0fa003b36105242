"""What a Redis URL names (a server, a primary that Sentinels know, or a cluster), and the redis-py client for it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

import redis
import redis.asyncio
import redis.asyncio.cluster
import redis.asyncio.connection
import redis.asyncio.sentinel
import redis.cluster
import redis.connection
import redis.sentinel
from redis.exceptions import RedisError

from podlink.domain.errors import InvalidArgument

_WANTED: Final = (
    "use redis://host:port/db, rediss://host:port/db or unix:///path/to/socket,"
    " redis+sentinel://host:port,host:port/service/db or redis+cluster://host:port,host:port"
)
_PLAIN: Final = ("redis", "rediss", "unix")
_PORTS: Final = {"sentinel": 26379, "cluster": 6379}


class Flavour(NamedTuple):
    """The classes of redis-py that open connections, asyncio's or the blocking ones."""

    client: Any
    pool: Any
    sentinel: Any
    cluster: Any
    cluster_node: Any
    parse_url: Any


ASYNCIO: Final = Flavour(
    redis.asyncio.Redis,
    redis.asyncio.ConnectionPool,
    redis.asyncio.sentinel.Sentinel,
    redis.asyncio.cluster.RedisCluster,
    redis.asyncio.cluster.ClusterNode,
    redis.asyncio.connection.parse_url,
)
BLOCKING: Final = Flavour(
    redis.Redis,
    redis.ConnectionPool,
    redis.sentinel.Sentinel,
    redis.cluster.RedisCluster,
    redis.cluster.ClusterNode,
    redis.connection.parse_url,
)


class _Target(NamedTuple):
    kind: str
    hosts: Sequence[tuple[str, int]]
    path: Sequence[str]
    plain: str
    """The same as a URL of one server, without hosts and path: user, password and settings."""
    query: dict[str, str]
    """The settings in the URL, but for those of the Sentinels."""
    sentinel_login: dict[str, str]
    encrypted: bool


def open_client(flavour: Flavour, url: str, settings: dict[str, Any]) -> Any:
    """Make a redis-py client; nothing is connected yet, except by the blocking client of a cluster.

    Args:
        flavour: asyncio's or the blocking classes.
        url: what to connect to; what it says about a setting wins.
        settings: of redis-py's connections.

    Raises:
        InvalidArgument: the URL or a setting cannot be used. The text never repeats the URL: it may hold a password.
    """
    target = _read(url)
    if target.encrypted:
        _check_files(settings | target.query)
    try:
        match target.kind:
            case "sentinel":
                return _sentinel(flavour, target, settings)
            case "cluster":
                return _cluster(flavour, target, settings)
            case _:
                return _server(flavour, url, settings)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"url or options cannot be used: {error}", argument="url") from None


def _check_files(settings: Mapping[str, Any]) -> None:
    """At the first call, OpenSSL would say that a file is missing, and not which."""
    for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"):
        path = settings.get(name)
        if isinstance(path, str) and not Path(path).is_file():
            raise InvalidArgument(f"{name} names no file: {path}", argument=name)


def names_cluster(url: str) -> bool:
    """Whether the URL is one of a cluster.

    Raises:
        InvalidArgument: the URL cannot be used.
    """
    return _read(url).kind == "cluster"


def _server(flavour: Flavour, url: str, settings: dict[str, Any]) -> Any:
    try:
        # With RESP3, redis-py expects server pushes, and then no longer notices that an idle connection was closed.
        pool = flavour.pool.from_url(url, **({"protocol": 2} | settings))
        # An unknown setting would otherwise show at the first call only.
        pool.connection_class(**pool.connection_kwargs)
    except RedisError as error:
        raise ValueError(str(error)) from None
    return flavour.client.from_pool(pool)


def _sentinel(flavour: Flavour, target: _Target, settings: dict[str, Any]) -> Any:
    service, *database = target.path
    options = _options(flavour, target, settings)
    bounds = {
        name: value for name, value in options.items() if name.startswith(("socket_", "ssl", "retry", "protocol"))
    }
    # Sentinels are asked in turn: those that hang must leave time for one that answers, and for the primary.
    for name in ("socket_timeout", "socket_connect_timeout"):
        if bounds.get(name):
            bounds[name] /= len(target.hosts) + 1
    sentinel = flavour.sentinel(target.hosts, sentinel_kwargs=bounds | target.sentinel_login, **options)
    client = sentinel.master_for(service, db=int(database[0]) if database else 0)
    client.connection_pool.connection_class(**client.connection_pool.connection_kwargs)
    return client


def _cluster(flavour: Flavour, target: _Target, settings: dict[str, Any]) -> Any:
    options = _options(flavour, target, settings)
    nodes = [flavour.cluster_node(host, port) for host, port in target.hosts]
    return flavour.cluster(startup_nodes=nodes, **options)


def _options(flavour: Flavour, target: _Target, settings: dict[str, Any]) -> dict[str, Any]:
    options = {"protocol": 2} | settings | flavour.parse_url(target.plain)
    if options.pop("connection_class", None):
        options["ssl"] = True
    return {name: value for name, value in options.items() if name not in {"host", "port", "db"}}


def _read(url: str) -> _Target:
    try:
        parts = urlsplit(url if isinstance(url, str) else "//[")
        scheme, _, kind = parts.scheme.partition("+")
        if not kind:
            _ = parts.port
        hosts = [_address(host, _PORTS[kind]) for host in _hosts(parts.netloc)] if kind in _PORTS else []
    except ValueError:
        # The original error quotes the part of the URL it choked on, so it is not chained.
        raise InvalidArgument(f"url cannot be read as a Redis URL: {_WANTED}", argument="url") from None
    if scheme not in _PLAIN or (kind and (kind not in _PORTS or scheme == "unix")):
        what = f"the scheme {parts.scheme!r}, which is not one of Redis" if parts.scheme else "no scheme"
        raise InvalidArgument(f"url has {what}: {_WANTED}", argument="url")
    path = [unquote(part) for part in parts.path.strip("/").split("/") if part]
    _check_path(kind, parts.scheme, path)
    query = dict(parse_qsl(parts.query))
    login = {name: query.pop(f"sentinel_{name}") for name in ("username", "password") if f"sentinel_{name}" in query}
    user = parts.netloc.rpartition("@")[0]
    plain = urlunsplit((scheme, f"{user}@localhost" if user else "localhost", "", urlencode(query), ""))
    return _Target(kind or "server", hosts, path, plain, query, login, scheme == "rediss")


def _hosts(netloc: str) -> list[str]:
    return netloc.rpartition("@")[2].split(",")


def _address(text: str, default_port: int) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError("a host is missing")
    return parts.hostname, parts.port or default_port


def _check_path(kind: str, scheme: str, path: Sequence[str]) -> None:
    if scheme == "unix":
        return
    if kind == "sentinel" and not path:
        raise InvalidArgument(f"url names no service that the Sentinels watch: {_WANTED}", argument="url")
    if kind == "cluster" and path:
        raise InvalidArgument(f"url names the database {path[0]!r}, and a cluster has none: {_WANTED}", argument="url")
    database = "/".join(path[1:] if kind == "sentinel" else path)
    if database and not (database.isascii() and database.isdigit()):
        # redis-py would take database 0 instead, without a word.
        raise InvalidArgument(f"url names the database {database!r}, which is no number: {_WANTED}", argument="url")
