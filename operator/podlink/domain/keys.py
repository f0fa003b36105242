"""Redis keys, and the checks of everything that becomes part of one.

The layout is shared with clients in other languages, so it is fixed. Each key carries one hash tag,
`{<ns>:<kind>:<name>}`, and whatever belongs together (a uid's links, a service's states and loads) shares it, so that
it lives in one hash slot. That is why a brace in a name is refused: it would move the tag. A namespace must not hold a
colon, which is what separates it from the rest; Kubernetes allows none there anyway.

The checks run before every call, so they are one precompiled match each.
"""

import re
from typing import Final, NamedTuple

from podlink.domain.errors import InvalidArgument

LAST_POD_ID: Final = 2**31 - 1
"""Largest podId: Kubernetes counts replicas in an int32."""

LAST_SECONDS: Final = 2**31 - 1
"""Longest time to live, in seconds (68 years)."""

PERMANENT: Final = -1
"""`persist_seconds` of a link without a time to live."""

# C0, DEL and C1 would make keys unreadable in every tool; a lone surrogate has no UTF-8 form.
_NAME: Final = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff{}]+").fullmatch
_BAD_IN_NAME: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff{}]").search
_NAMESPACE: Final = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff{}:]+").fullmatch
_TEXT: Final = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]+").fullmatch
_DIGITS: Final = re.compile(r"[0-9]+").fullmatch

_STATE_KEY: Final = re.compile(r"sf:\{([^:{}]+):state:([^{}]+)\}(?:load|rv|exp)?").fullmatch
_WORKLOAD_KEY: Final = re.compile(r"sf:\{([^:{}]+):workload:([^{}]+)\}(?:rv)?").fullmatch
_LINK_KEY: Final = re.compile(r"sf:\{([^:{}]+):lk:([^{}]+)\}([^{}]+)").fullmatch
_UID_HASH_KEY: Final = re.compile(r"sf:\{([^:{}]+):lk:([^{}]+)\}").fullmatch

_SHOWN_CHARACTERS: Final = 60


class ServiceName(NamedTuple):
    """A service, by namespace and name. Equal to, and hashed like, the plain tuple `(namespace, service)`."""

    namespace: str
    service: str


class Uid(NamedTuple):
    """A uid in its namespace. Equal to, and hashed like, the plain tuple `(namespace, uid)`."""

    namespace: str
    uid: str


def state_key(namespace: str, service: str) -> str:
    """Hash, podId -> state."""
    return f"sf:{{{namespace}:state:{service}}}"


def load_key(namespace: str, service: str) -> str:
    """Hash, podId -> number of links."""
    return f"sf:{{{namespace}:state:{service}}}load"


def version_key(namespace: str, service: str) -> str:
    """Hash, podId -> resourceVersion of the last state written."""
    return f"sf:{{{namespace}:state:{service}}}rv"


def expiry_key(namespace: str, service: str) -> str:
    """Sorted set, `<podId> <link key>` -> Unix time in milliseconds at which that temporary link ends."""
    return f"sf:{{{namespace}:state:{service}}}exp"


def workload_key(namespace: str, service: str) -> str:
    """String, state of the workload."""
    return f"sf:{{{namespace}:workload:{service}}}"


def workload_version_key(namespace: str, service: str) -> str:
    """String, resourceVersion of the last workload state written."""
    return f"sf:{{{namespace}:workload:{service}}}rv"


def link_head(namespace: str) -> str:
    """What the keys of the namespace's uids begin with; uid and tail follow."""
    return f"sf:{{{namespace}:lk:"


def link_tail(service: str) -> str:
    """What the key of a uid's link to a service ends with."""
    return f"}}{service}"


LINK_HASH_TAIL: Final = "}"
"""What the key of a uid's hash of links ends with."""


def link_hash_key(namespace: str, uid: str) -> str:
    """Hash, service -> podId, every link of the uid."""
    return f"sf:{{{namespace}:lk:{uid}}}"


def link_key(namespace: str, uid: str, service: str) -> str:
    """String, podId; carries the time to live of a temporary link."""
    return f"sf:{{{namespace}:lk:{uid}}}{service}"


def marker_key(name: str) -> str:
    """String, a value of the operator's own. No service or uid key can equal it: its hash tag has no colon."""
    return f"sf:{{podlink}}{name}"


def service_of_key(key: str) -> ServiceName | None:
    """The service a state or workload key (or a key that extends one) belongs to; None for every other key."""
    match = _STATE_KEY(key) or _WORKLOAD_KEY(key)
    return ServiceName(*match.groups()) if match and _addressable(*match.groups()) else None


def uid_of_key(key: str) -> Uid | None:
    """The uid whose hash of links this key is; None for every other key."""
    match = _UID_HASH_KEY(key)
    return Uid(*match.groups()) if match and _addressable(*match.groups()) else None


def link_of_key(key: str) -> tuple[str, str, str] | None:
    """Namespace, uid and service of the link whose string this key is; None for every other key."""
    match = _LINK_KEY(key)
    return (match[1], match[2], match[3]) if match else None


def checked_namespace(value: str) -> str:
    """Return a namespace as a plain str. Refuse one that cannot be part of a key.

    Raises:
        InvalidArgument: it is empty, no str, or contains a colon, a brace, a control character or a lone surrogate.
    """
    plain = value if type(value) is str else _plain_str(value)
    if plain is None or not _NAMESPACE(plain):
        raise _bad_name("namespace", value, "a colon, braces")
    return plain


def checked_service(value: str, argument: str = "service") -> str:
    """Return a service as a plain str. Refuse one that cannot be part of a key.

    Raises:
        InvalidArgument: it is empty, no str, or contains a brace, a control character or a lone surrogate.
    """
    plain = value if type(value) is str else _plain_str(value)
    if plain is None or not _NAME(plain):
        raise _bad_name(argument, value, "braces")
    return plain


def checked_uid(value: str, argument: str = "uid") -> str:
    """Return a uid as a plain str. Refuse one that cannot be part of a key.

    Raises:
        InvalidArgument: it is empty, no str, or contains a brace, a control character or a lone surrogate.
    """
    plain = value if type(value) is str else _plain_str(value)
    # To search for something bad is faster than to match all that is good, and every call checks a uid.
    if not plain or _BAD_IN_NAME(plain):
        raise _bad_name(argument, value, "braces")
    return plain


def checked_pod_id(value: int, argument: str = "pod_id") -> int:
    """Return the ordinal of a pod as a plain int. Refuse everything else.

    Raises:
        InvalidArgument: it is no int (a bool counts as none), or not from 0 to 2**31 - 1.
    """
    plain = value if type(value) is int else _plain_int(value)
    if plain is None or not 0 <= plain <= LAST_POD_ID:
        raise InvalidArgument(
            f"{argument} must be an int from 0 to {LAST_POD_ID} (a pod's ordinal), got {_shown(value)}",
            argument=argument,
        )
    return plain


def checked_persist(value: int) -> int:
    """Return the lifetime of a link in seconds as a plain int. Refuse everything else.

    Raises:
        InvalidArgument: it is neither -1 (permanent) nor an int from 1 to 2**31 - 1 (seconds).
    """
    plain = value if type(value) is int else _plain_int(value)
    if plain is None or not (plain == PERMANENT or 0 < plain <= LAST_SECONDS):
        raise InvalidArgument(
            "persist_seconds must be -1 (a permanent link) or an int from 1 to "
            f"{LAST_SECONDS} (seconds until it expires), got {_shown(value)}",
            argument="persist_seconds",
        )
    return plain


def checked_release_persist(value: int) -> int:
    """Return a reconnect window in seconds as a plain int. Refuse everything else.

    Raises:
        InvalidArgument: it is no int from 0 (no window) to 2**31 - 1 (seconds).
    """
    plain = value if type(value) is int else _plain_int(value)
    if plain is None or not 0 <= plain <= LAST_SECONDS:
        raise InvalidArgument(
            "persist_seconds of a removal must be 0 (gone at once) or an int up to "
            f"{LAST_SECONDS} (seconds the link can still be found), got {_shown(value)}",
            argument="persist_seconds",
        )
    return plain


def checked_text(value: str, argument: str) -> str:
    """Return a state or a marker as a plain str. Refuse what is no printable text. The empty string is allowed.

    Raises:
        InvalidArgument: it is no str, or contains a control character or a lone surrogate.
    """
    plain = value if type(value) is str else _plain_str(value)
    if plain is None or (plain and not _TEXT(plain)):
        raise InvalidArgument(
            f"{argument} must be a str without control characters and lone surrogates"
            f' ("" where there is none), got {_shown(value)}',
            argument=argument,
        )
    return plain


def checked_version(value: str | int | None) -> str:
    """Return a resourceVersion as it is sent to Redis. The empty string means "no version".

    Raises:
        InvalidArgument: it is not None, no int >= 0 and no str of decimal digits. Kubernetes lets clients compare
            resourceVersions only as decimal numbers, so anything else could not refuse a stale writer.
    """
    if value is None:
        return ""
    number = _plain_int(value)
    plain = _plain_str(value) if number is None else str(number)
    if plain is not None and _DIGITS(plain):
        return plain
    raise InvalidArgument(
        f"version must be a string of decimal digits (a Kubernetes resourceVersion), or None to write"
        f" whatever is stored, got {_shown(value)}",
        argument="version",
    )


def _plain_str(value: object) -> str | None:
    """Return what a str, or an instance of a subclass such as an enumeration, holds. None for everything else."""
    # A member of `class Service(str, Enum)` prints as its name, so str() and f-strings would give another key.
    return str.__str__(value) if isinstance(value, str) else None


def _plain_int(value: object) -> int | None:
    """Return what an int, or an instance of a subclass other than bool, holds. None for everything else."""
    return int.__index__(value) if isinstance(value, int) and not isinstance(value, bool) else None


def _addressable(namespace: str, name: str) -> bool:
    return bool(_NAMESPACE(namespace) and _NAME(name))


def _bad_name(argument: str, value: object, refused: str) -> InvalidArgument:
    return InvalidArgument(
        f"{argument} must be a non-empty str without {refused}, control characters and lone surrogates"
        f" (it becomes part of a Redis key), got {_shown(value)}",
        argument=argument,
    )


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= _SHOWN_CHARACTERS else f"{shown[: _SHOWN_CHARACTERS - 3]}..."
