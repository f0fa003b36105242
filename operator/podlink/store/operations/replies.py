"""How the raw replies of scripts and commands are read."""

from collections.abc import Iterable
from typing import Any, Final

_NONE_ON_THE_WIRE: Final = (-1, b"-1", "-1")


def text(reply: Any) -> str:
    """Text, sent as bytes or str."""
    return reply.decode() if isinstance(reply, bytes) else str(reply)


def utf8(reply: Any) -> str | None:
    """Text, or None where it is none, and so not ours."""
    try:
        return text(reply)
    except UnicodeDecodeError:
        return None


def optional_text(reply: Any) -> str | None:
    """Text, or None for a nil."""
    return None if reply is None else text(reply)


def nothing(_reply: Any) -> None:
    """Whatever it was."""
    return


def flag(reply: Any) -> bool:
    """1 or 0."""
    return int(reply) == 1


def pod(reply: Any, *, of: str = "") -> int:
    """A podId.

    Raises:
        ValueError: it is none; the text says what is there instead, and `of` which key.
    """
    digits = reply if isinstance(reply, bytes) else str(reply)
    if not digits.isdigit():
        raise ValueError(f"{_shown(reply)} is no podId{f' (at {of})' if of else ''}")
    return int(digits)


def optional_pod(reply: Any) -> int | None:
    """A podId, or None for a nil or -1."""
    if isinstance(reply, bytes) and reply.isdigit():  # all but always, and this is asked for every call
        return int(reply)
    return None if reply is None or reply in _NONE_ON_THE_WIRE else pod(reply)


def set_and_pod(reply: Any) -> tuple[bool, int]:
    """Whether ours was set, and the pod now linked."""
    current, is_set = reply
    return flag(is_set), pod(current)


def pairs(reply: Any) -> Iterable[tuple[Any, Any]]:
    """A map, sent as one or as a flat list."""
    if isinstance(reply, dict):
        return reply.items()
    return zip(reply[::2], reply[1::2], strict=True)


def texts_by_pod(reply: Any) -> dict[int, str]:
    """A map of podId to text."""
    return {pod(key): text(value) for key, value in pairs(reply)}


def pods_by_service(reply: Any) -> dict[str, int]:
    """A map of service to podId."""
    return {text(service): pod(value) for service, value in pairs(reply)}


def _shown(reply: Any) -> str:
    return repr(reply.decode(errors="backslashreplace") if isinstance(reply, bytes) else reply)


def as_it_is(reply: Any) -> Any:
    """For those who read it themselves."""
    return reply
