"""What a call to Redis goes through, without the I/O: both executors drive this and add only sockets.

Retrying is where such a library goes wrong, so the one place that sends anything twice is here: a script the server
does not know (NOSCRIPT) has not run, so loading it and sending it again is safe. Nothing else is ever sent again.

In a pipeline that alone would break the order: a read behind a script that has to be sent again would come before it.
So a pipeline carries the text of each script the first time it needs it, and its digest from then on; the server knows
the script by then. Of some hundred operations, the text is a tenth of what is sent. Calls of many callers that merely
travel together have no order to keep, and are sent by digest.
"""

import functools
import inspect
import logging
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, TypeVar, get_args
from urllib.parse import urlsplit

import redis
import redis.asyncio
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterDownError,
    MaxConnectionsError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)

from podlink.domain.errors import InvalidArgument, PodLinkError, RedisUnavailable, ScriptError
from podlink.store.merging import merge
from podlink.store.operations import Operation

E = TypeVar("E", bound=PodLinkError)
M = TypeVar("M", bound=Callable[..., Any])
Pool = TypeVar("Pool", redis.ConnectionPool, redis.asyncio.ConnectionPool)
T = TypeVar("T")

Outcome: TypeAlias = Literal["ok", "unavailable", "script_error"]

Observer: TypeAlias = Callable[[str, float, Outcome], None]
"""Called after each operation with its name, the seconds it took (of the whole pipeline, for one of many) and how it
ended. It runs inside the call, so it must be quick; what it raises reaches the caller."""

DEFAULT_TIMEOUT_SECONDS: Final = 5.0
DEFAULT_CONNECTIONS: Final = 50
SCHEMES: Final = ("redis", "rediss", "unix")

Request: TypeAlias = tuple[str | int, ...]

logger: Final = logging.getLogger("podlink.executor")

# The server refused before it did anything, and will take the same request later or elsewhere.
_NOT_NOW: Final = (ReadOnlyError, OutOfMemoryError, ClusterDownError, TryAgainError)
_NOT_NOW_CODES: Final = ("BUSY ", "MISCONF ", "NOREPLICAS ")
# The same, in answers after which redis-py drops the connection.
_NOT_NOW_AND_GONE: Final = (AuthenticationError, AuthorizationError, BusyLoadingError)


@dataclass(frozen=True, slots=True)
class Lost:
    """Stands in for a reply that never came.

    Attributes:
        cause: what went wrong with the connection.
        sent: whether the request may have reached the server.
    """

    cause: BaseException
    sent: bool


Reply: TypeAlias = Any
"""What the server answered, the ResponseError it answered with, or Lost."""

Conversation: TypeAlias = Generator[list[Request], list[Reply], T]
"""Yields requests to send down one connection in one go, and is sent one reply for each of them."""


def conversation(operations: Sequence[Operation[T]]) -> Conversation[list[T | PodLinkError]]:
    """Run operations in one pipeline: each has its own result, or its own error, in its own place."""
    replies = yield from _talk(operations, ordered=True)
    return [_result(operation, reply) for operation, reply in zip(operations, replies, strict=True)]


def merged_conversation(operations: Sequence[Operation[T]]) -> Conversation[list[T | PodLinkError]]:
    """Run operations that have no order among them in as few requests as may be; results as of `conversation`."""
    parcels = list(merge(operations))
    answers = yield from _talk([operation for operation, _ in parcels], ordered=False)
    replies: list[Reply] = []
    refused: list[int] = []
    for (_, count), answer in zip(parcels, answers, strict=True):
        if count > 1 and isinstance(answer, NoPermissionError):
            # The keys of one call may be out of bounds; those of the others need not be. Nothing has run.
            refused += range(len(replies), len(replies) + count)
        # What befell the whole parcel befell each in it.
        replies += answer if count > 1 and isinstance(answer, list) else [answer] * count
    if refused:
        alone = yield from _talk([operations[slot] for slot in refused], ordered=False)
        for slot, answer in zip(refused, alone, strict=True):
            replies[slot] = answer
    return [_result(operation, reply) for operation, reply in zip(operations, replies, strict=True)]


def _talk(operations: Sequence[Operation[Any]], *, ordered: bool) -> Conversation[list[Reply]]:
    replies: list[Reply] = [()] * len(operations)
    asked = [slot for slot, operation in enumerate(operations) if operation.target]
    if asked:
        answers = yield _requests([operations[slot] for slot in asked], ordered=ordered)
        for slot, answer in zip(asked, answers, strict=True):
            replies[slot] = answer
        unknown = [slot for slot in asked if isinstance(replies[slot], NoScriptError)]
        if unknown:
            yield from _load_and_repeat(operations, unknown, replies)
    return replies


def _requests(operations: Sequence[Operation[Any]], *, ordered: bool) -> list[Request]:
    if len(operations) == 1 or not ordered:
        return [operation.request() for operation in operations]
    requests: list[Request] = []
    known: set[str] = set()
    for operation in operations:
        requests.append(operation.request(with_text=operation.target not in known))
        known.add(operation.target)
    return requests


def _load_and_repeat(
    operations: Sequence[Operation[Any]], unknown: list[int], replies: list[Reply]
) -> Conversation[None]:
    texts = {script.text: None for slot in unknown if (script := operations[slot].script)}
    # Loading travels ahead of the scripts down the same connection, so it also reaches the same server.
    answers = yield [("SCRIPT", "LOAD", text) for text in texts] + [operations[slot].request() for slot in unknown]
    loaded, repeated = answers[: len(texts)], answers[len(texts) :]
    refused = next((answer for answer in loaded if isinstance(answer, ResponseError)), None)
    for slot, answer in zip(unknown, repeated, strict=True):
        # The server's reason for not loading a script says more than the NOSCRIPT that follows from it.
        replies[slot] = refused if refused and isinstance(answer, NoScriptError) else answer


def _result(operation: Operation[T], reply: Reply) -> T | PodLinkError:
    if isinstance(reply, Lost):
        maybe_applied = reply.sent and not isinstance(reply.cause, _NOT_NOW_AND_GONE)
        return _unavailable(operation, reply.cause, maybe_applied=maybe_applied)
    if isinstance(reply, ResponseError):
        if isinstance(reply, _NOT_NOW) or str(reply).startswith(_NOT_NOW_CODES):
            return _unavailable(operation, reply, maybe_applied=False)
        return _with_cause(
            ScriptError(
                f"{operation.name}: {operation.target} failed on {_place(operation)}: {reply}",
                script=operation.target,
                server_message=str(reply),
            ),
            reply,
        )
    try:
        return operation.parse(reply)
    except (TypeError, ValueError) as error:
        return _with_cause(
            ScriptError(
                f"{operation.name}: unexpected reply of {operation.target} on {_place(operation)}: {error}",
                script=operation.target,
                server_message=str(error),
            ),
            error,
        )


def _place(operation: Operation[Any]) -> str:
    return operation.keys[0] if operation.keys else "this server"


def _unavailable(operation: Operation[Any], cause: BaseException, *, maybe_applied: bool) -> RedisUnavailable:
    fate = "The call may or may not have been applied." if maybe_applied else "The call was not applied."
    error = RedisUnavailable(f"{operation.name}: {_reason(cause)} {fate}", maybe_applied=maybe_applied)
    return _with_cause(error, cause)


def tells_of_replica(reply: Reply) -> bool:
    """Whether a reply, or one in the list of a batch, says that the server takes no writes."""
    if isinstance(reply, list):
        return any(isinstance(inner, ReadOnlyError) for inner in reply)
    return isinstance(reply, ReadOnlyError)


def timed_out(operation: Operation[Any], seconds: float, *, sent: bool) -> RedisUnavailable:
    """The error of a call that has no answer when its time is up."""
    return _unavailable(operation, timeout_error(seconds, sent=sent), maybe_applied=sent)


def timeout_error(seconds: float, *, sent: bool) -> TimeoutError:
    """What went wrong, by whether the request had left."""
    return TimeoutError(f"no {'answer' if sent else 'connection'} within {seconds:g} seconds")


def _reason(cause: BaseException) -> str:
    text = str(cause).strip().rstrip(".?!") or type(cause).__name__
    match cause:
        case AuthenticationError() | AuthorizationError():
            return f"Redis refused the user name or the password: {text}. Check the credentials in its URL."
        case BusyLoadingError() | ResponseError():
            return f"Redis cannot serve now: {text}."
        case MaxConnectionsError():
            return f"all connections to Redis are in use: {text}."
        case _:
            return f"Redis is unreachable: {text}."


def _with_cause(error: E, cause: BaseException) -> E:
    error.__cause__ = cause
    return error


def report(
    operations: Sequence[Operation[T]], results: Sequence[T | PodLinkError], seconds: float, observer: Observer | None
) -> None:
    """Tell the log, where debug messages are enabled, and the observer how each operation ended."""
    logging_on = logger.isEnabledFor(logging.DEBUG)
    if not (logging_on or observer):
        return
    for operation, result in zip(operations, results, strict=True):
        outcome = _outcome(result)
        if logging_on:
            logger.debug(
                "%s: %s",
                operation.name,
                outcome,
                extra={
                    "namespace": operation.namespace,
                    "service": operation.service,
                    "uid": operation.uid,
                    "script": operation.target,
                    "duration_seconds": seconds,
                },
            )
        if observer:
            observer(operation.name, seconds, outcome)


def _outcome(result: object) -> Outcome:
    if isinstance(result, RedisUnavailable):
        return "unavailable"
    return "script_error" if isinstance(result, PodLinkError) else "ok"


def described_by(build: Callable[..., Any], method: M) -> M:
    """Give an executor's method the name, the docstring and the signature of the builder whose operation it runs."""
    functools.update_wrapper(method, build)
    signature = inspect.signature(build)
    this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    (result,) = get_args(signature.return_annotation)
    described = signature.replace(parameters=[this, *signature.parameters.values()], return_annotation=result)
    vars(method)["__signature__"] = described
    return method


def open_pool(pool_class: type[Pool], url: str, settings: dict[str, Any]) -> Pool:
    """Make a pool of connections to the server a URL names; none is opened yet.

    Args:
        pool_class: of redis-py, asyncio or blocking.
        url: `redis://`, `rediss://` or `unix://`; what it says about a setting wins.
        settings: of the pool and of redis-py's connections.

    Raises:
        InvalidArgument: the URL or a setting cannot be used. The text never repeats the URL: it may hold a password.
    """
    _check_url(url)
    limit = settings["max_connections"]
    if type(limit) is not int or limit < 1:
        raise InvalidArgument(f"max_connections must be an int above 0, got {limit!r}", argument="max_connections")
    try:
        # With RESP3, redis-py expects server pushes, and then no longer notices that an idle connection was closed.
        pool = pool_class.from_url(url, **({"protocol": 2} | settings))
        # An unknown setting would otherwise show at the first call only.
        pool.connection_class(**pool.connection_kwargs)
    except (TypeError, ValueError, RedisError) as error:
        raise InvalidArgument(f"url or options cannot be used: {error}", argument="url") from None
    return pool


def check_timeout(seconds: float) -> None:
    """Refuse a timeout under which no call could succeed.

    Raises:
        InvalidArgument: it is not above 0.
    """
    if not isinstance(seconds, int | float) or not seconds > 0:
        raise InvalidArgument(f"timeout_seconds must be a number above 0, got {seconds!r}", argument="timeout_seconds")


def _check_url(url: str) -> None:
    wanted = "use redis://host:port/db, rediss://host:port/db or unix:///path/to/socket"
    try:
        parts = urlsplit(url if isinstance(url, str) else "//[")
        _ = parts.port
    except ValueError:
        # The original error quotes the part of the URL it choked on, so it is not chained.
        raise InvalidArgument(f"url cannot be read as a Redis URL: {wanted}", argument="url") from None
    if parts.scheme not in SCHEMES:
        what = f"the scheme {parts.scheme!r}, which is not one of Redis" if parts.scheme else "no scheme"
        raise InvalidArgument(f"url has {what}: {wanted}", argument="url")
    database = parts.path.strip("/")
    if parts.scheme != "unix" and database and not (database.isascii() and database.isdigit()):
        # redis-py would take database 0 instead, without a word.
        raise InvalidArgument(f"url names the database {database!r}, which is no number: {wanted}", argument="url")
