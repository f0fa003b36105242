"""What is asked of the server itself, and what the operator keeps there for itself."""

from typing import Any

from podlink.domain import keys
from podlink.store.operations import replies
from podlink.store.operations.base import Operation, command


def ping() -> Operation[bool]:
    """Ask whether the server answers; True if it does."""
    return command("ping", "PING", lambda reply: replies.text(reply) == "PONG")


def get_marker(name: str) -> Operation[str | None]:
    """Read a value the operator keeps in Redis, for example to notice that the data has been lost.

    Returns:
        The value, or None.

    Raises:
        InvalidArgument: an invalid argument.
    """
    name = keys.checked_service(name, "name")
    return command("get_marker", "GET", replies.optional_text, keys=(keys.marker_key(name),))


def set_marker(name: str, value: str) -> Operation[None]:
    """Write a value the operator keeps in Redis.

    Raises:
        InvalidArgument: an invalid argument.
    """
    name = keys.checked_service(name, "name")
    value = keys.checked_text(value, "value")
    return command("set_marker", "SET", replies.nothing, keys=(keys.marker_key(name),), args=(value,))


def run_id(*, node: str | None = None) -> Operation[str]:
    """Read the random id a Redis server gives itself at every start.

    Args:
        node: address of the server of a cluster that is meant, see `nodes` of the executors.

    Returns:
        40 hexadecimal digits.
    """
    return command("run_id", "INFO", _run_id, args=("server",), node=node)


def server_info(*, node: str | None = None) -> Operation[dict[str, str]]:
    """Read what a server says about itself: the fields of INFO, as text.

    Args:
        node: address of the server of a cluster that is meant, see `nodes` of the executors.
    """
    # Without a section: older servers take only one.
    return command("server_info", "INFO", _info, node=node)


def server_setting(name: str, *, node: str | None = None) -> Operation[str]:
    """Read a setting of a server, which not every user may do.

    Args:
        name: as in the configuration of the server, without wildcards.
        node: address of the server of a cluster that is meant, see `nodes` of the executors.
    """
    return command("server_setting", "CONFIG GET", _setting, args=(name,), node=node)


def key_type(key: str) -> Operation[str]:
    """Ask of which type a key is: string, hash, and so on; "none" when there is none."""
    return command("key_type", "TYPE", replies.text, keys=(key,))


def field_expiry_supported() -> Operation[bool]:
    """Ask whether the server can expire single fields of a hash (Redis from 7.4, Valkey from 9.0)."""
    return command("field_expiry_supported", "COMMAND INFO", lambda reply: bool(reply[0]), args=("HPEXPIREAT",))


def scan(cursor: int, pattern: str, count: int, *, node: str | None = None) -> Operation[tuple[int, list[str]]]:
    """Take one slice of the keyspace.

    Args:
        cursor: 0 to start, then the one returned.
        pattern: glob the keys must match.
        count: about how many keys the server looks at.
        node: address of the server of a cluster whose keys these are, see `nodes` of the executors.

    Returns:
        The next cursor, 0 at the end, and the matching keys (a key may come twice; one that is no UTF-8 is not ours).
    """
    return command("scan", "SCAN", _slice, args=(cursor, "MATCH", pattern, "COUNT", count), node=node)


def _run_id(reply: Any) -> str:
    return _info(reply)["run_id"]


def _info(reply: Any) -> dict[str, str]:
    fields = (line.partition(":") for line in replies.text(reply).splitlines())
    return {name: value for name, separator, value in fields if separator}


def _setting(reply: Any) -> str:
    # RESP3 has a map for it, RESP2 a list.
    (value,) = reply.values() if isinstance(reply, dict) else reply[1:]
    return replies.text(value)


def _slice(reply: Any) -> tuple[int, list[str]]:
    cursor, found = reply
    return int(cursor), [key for key in map(replies.utf8, found) if key is not None]
