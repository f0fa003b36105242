"""What became of an operation: from the server's reply, or from its absence, to a result or to one of our errors."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias, TypeVar

from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterDownError,
    MaxConnectionsError,
    MovedError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
    TryAgainError,
)

from podlink.domain.errors import NotReplicated, PodLinkError, RedisUnavailable, ScriptError
from podlink.store.operations import Operation

E = TypeVar("E", bound=PodLinkError)
T = TypeVar("T")

Outcome: TypeAlias = Literal["ok", "unavailable", "script_error"]

Observer: TypeAlias = Callable[[str, float, Outcome], None]
"""Called after each operation with its name, the seconds it took (of the whole pipeline, for one of many) and how it
ended. It runs inside the call, so it must be quick; what it raises reaches the caller."""

Reply: TypeAlias = Any
"""What the server answered, the exception that stands for its error, or Lost."""

logger: Final = logging.getLogger("podlink.executor")

# The server refused before it did anything, and will take the same request later or elsewhere.
_NOT_NOW: Final = (
    ReadOnlyError,
    OutOfMemoryError,
    ClusterDownError,
    TryAgainError,
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
)
_NOT_NOW_CODES: Final = ("BUSY ", "MISCONF ", "NOREPLICAS ", "MASTERDOWN ")

_ERRORS: Final[dict[str, Callable[[str], Exception]]] = {
    "ASK": AskError,
    "CLUSTERDOWN": ClusterDownError,
    "LOADING": BusyLoadingError,
    "MOVED": MovedError,
    "NOAUTH": AuthenticationError,
    "NOPERM": NoPermissionError,
    "NOSCRIPT": NoScriptError,
    "OOM": OutOfMemoryError,
    "READONLY": ReadOnlyError,
    "TRYAGAIN": TryAgainError,
    "WRONGPASS": AuthenticationError,
}


NO_HOST: Final = (None, "", "?")
"""How a server of a Cluster says that it does not know the host of another one."""

_TOO_MANY_CLIENTS: Final = "max number of clients reached"
_WRONG_SERVER: Final = {
    "unknown command 'SENTINEL'": "this is no Sentinel; of a plain server, the URL begins with redis://",
    "unknown command 'GET'": "this is a Sentinel, whose URL begins with redis+sentinel:// and ends with /service",
    "Cluster mode is not enabled": "this is no cluster; its URL begins with redis://",
    "DB index is out of range": "the server has no such database; its URL ends with the number of one",
}


class Lost(Exception):  # noqa: N818 - it is no error of a program, but stands where one of the server's would
    """Stands in for a reply that never came.

    Attributes:
        cause: what went wrong with the connection.
        sent: whether the request may have reached the server.
    """

    def __init__(self, cause: BaseException, *, sent: bool) -> None:
        super().__init__(cause)
        self.cause = cause
        self.sent = sent


def server_error(text: str, host: str = "") -> Exception:
    """Return the exception, as redis-py would raise it, for an error that a server answered.

    Args:
        text: the error.
        host: of the server.
    """
    code, _, rest = text.partition(" ")
    known = _ERRORS.get(code)
    return located(known(rest), host) if known else ResponseError(text)


def located(error: Exception, host: str) -> Exception:
    """Complete a redirection without a host: it means the host that answered, with another port.

    Servers of a Cluster send this with `cluster-preferred-endpoint-type unknown-endpoint`. With `hostname`, they send
    "?" if they have none.
    """
    if isinstance(error, MovedError | AskError) and error.host in NO_HOST and host:
        error.host = host
        error.node_addr = host, error.port
    return error


def outcome(operation: Operation[T], reply: Reply) -> T | PodLinkError:
    """What an operation's reply means: its result, or its error."""
    if isinstance(reply, Exception):
        return _refused(operation, reply)
    try:
        return operation.shape.parse(reply)
    except (TypeError, ValueError, LookupError) as error:
        return _with_cause(
            ScriptError(
                f"{operation.name}: unexpected reply of {operation.target} on {_place(operation)}: {error}",
                script=operation.target,
                server_message=str(error),
            ),
            error,
        )


def _refused(operation: Operation[Any], error: Exception) -> PodLinkError:
    if isinstance(error, Lost):
        maybe_applied = error.sent and not isinstance(error.cause, _NOT_NOW)
        return unavailable(operation.name, error.cause, maybe_applied=maybe_applied)
    if isinstance(error, _NOT_NOW) or str(error).startswith(_NOT_NOW_CODES):
        return unavailable(operation.name, error, maybe_applied=False)
    return _with_cause(
        ScriptError(
            f"{operation.name}: {operation.target} failed on {_place(operation)}: {_said(error)}",
            script=operation.target,
            server_message=str(error),
        ),
        error,
    )


def not_replicated(operation: Operation[Any], replicas: int, cause: Exception) -> NotReplicated:
    """The error of a call that the primary applied and too few replicas confirmed."""
    who = "no replica" if replicas == 1 else f"fewer than {replicas} replicas"
    why = "in time" if isinstance(cause, TimeoutError) else f"({cause})"
    text = f"{operation.name}: the primary applied the call, but {who} confirmed it {why}; a failover may lose it"
    return _with_cause(NotReplicated(text, maybe_applied=True), cause)


def timeout_error(seconds: float, *, sent: bool) -> TimeoutError:
    """What went wrong, by whether the request had left."""
    return TimeoutError(f"no {'answer' if sent else 'connection'} within {seconds:g} seconds")


def no_map(seconds: float, asked: Iterable[str] = ()) -> TimeoutError:
    """What went wrong where servers of a cluster, by their addresses, did not answer."""
    places = ", ".join(asked)
    return TimeoutError(
        f"no server of the cluster answered within {seconds:g} seconds{f' ({places})' if places else ''}"
    )


def report(
    operations: Sequence[Operation[T]], results: Sequence[T | PodLinkError], seconds: float, observer: Observer | None
) -> Mapping[int, Exception]:
    """Tell the log, where debug messages are enabled, and the observer how each operation ended.

    Returns:
        What the observer raised, by the place of the operation that it was told of.
    """
    raised: dict[int, Exception] = {}
    logging_on = logger.isEnabledFor(logging.DEBUG)
    if not (logging_on or observer):
        return raised
    for slot, (operation, result) in enumerate(zip(operations, results, strict=True)):
        ended = _ended(result)
        if logging_on:
            logger.debug(
                "%s: %s",
                operation.name,
                ended,
                extra={
                    "namespace": operation.shape.namespace,
                    "service": operation.shape.service,
                    "uid": operation.uid or None,
                    "script": operation.target,
                    "duration_seconds": seconds,
                },
            )
        if observer:
            try:
                observer(operation.name, seconds, ended)
            except Exception as error:  # noqa: BLE001 - whatever it is, it reaches the caller of this operation
                raised[slot] = error
    return raised


def _ended(result: object) -> Outcome:
    if isinstance(result, RedisUnavailable):
        return "unavailable"
    return "script_error" if isinstance(result, PodLinkError) else "ok"


def _said(error: Exception) -> str:
    if isinstance(error, MovedError | AskError) or "hash to the same slot" in str(error):
        return f"{error}: this is a node of a cluster, whose URL begins with redis+cluster://"
    wrong = _wrong_server(str(error))
    return f"{error}: {wrong}" if wrong else str(error)


def _wrong_server(text: str) -> str:
    """What a URL has wrong that leads to a server of another kind, as the server's words betray it."""
    return next((meaning for words, meaning in _WRONG_SERVER.items() if words in text), "")


def _place(operation: Operation[Any]) -> str:
    return operation.keys[0] if operation.keys else "this server"


def unavailable(name: str, cause: BaseException, *, maybe_applied: bool) -> RedisUnavailable:
    """The error of an operation, by its name, that has no answer."""
    fate = "The call may or may not have been applied." if maybe_applied else "The call was not applied."
    error = RedisUnavailable(f"{name}: {_reason(cause)} {fate}", maybe_applied=maybe_applied)
    return _with_cause(error, cause)


def _reason(cause: BaseException) -> str:
    text = str(cause).strip().rstrip(".?!") or type(cause).__name__
    if isinstance(cause, RedisClusterException) and isinstance(cause.__cause__, RedisError):
        cause = cause.__cause__
        text = f"no server of the cluster says where keys are, the last one asked: {str(cause).rstrip('.?!')}"
    hint = _hint(cause, text)
    if wrong := _wrong_server(text):
        return f"{text}: {wrong}."
    if _TOO_MANY_CLIENTS in text:
        return f"Redis cannot serve now: {text}. Raise maxclients in its configuration, or use fewer connections."
    match cause:
        case AuthenticationError() | AuthorizationError():
            return f"Redis refused the user name or the password: {text}.{hint}"
        case BusyLoadingError() | ResponseError():
            return f"Redis cannot serve now: {text}."
        case MaxConnectionsError():
            return f"all connections to Redis are in use: {text}."
        case _:
            return f"Redis is unreachable: {text}.{hint}"


def _hint(cause: BaseException, text: str) -> str:
    if isinstance(cause, AuthenticationError | AuthorizationError) or isinstance(cause.__cause__, AuthenticationError):
        return " Check the credentials in its URL."
    if "ssl" in text.lower():
        return " Check the certificates that its URL names; it may ask for one."
    return ""


def _with_cause(error: E, cause: BaseException) -> E:
    error.__cause__ = cause
    return error
