"""What both executors have in common besides their operations: their options, and how their methods are described."""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, Final, Literal, TypeAlias, TypeVar, get_args

from podlink.domain.errors import InvalidArgument
from podlink.store.batching.exchange import Request

M = TypeVar("M", bound=Callable[..., Any])

DEFAULT_TIMEOUT_SECONDS: Final = 5.0

Durability: TypeAlias = Literal["primary", "replicated"]
"""Which servers must have a write before the call returns."""


def described_by(build: Callable[..., Any], method: M) -> M:
    """Give a method of an executor the name, the docstring and the signature of its builder."""
    functools.update_wrapper(method, build)
    signature = inspect.signature(build)
    this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    (result,) = get_args(signature.return_annotation)
    described = signature.replace(parameters=[this, *signature.parameters.values()], return_annotation=result)
    vars(method)["__signature__"] = described
    return method


def check_timeout(seconds: float) -> None:
    """Refuse a timeout with which no call could succeed.

    Raises:
        InvalidArgument: it is no number above 0, or infinite.
    """
    if not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
        raise InvalidArgument(
            f"timeout_seconds must be a finite number above 0, got {seconds!r}", argument="timeout_seconds"
        )


def confirmation(durability: str, replicas: int, timeout_seconds: float) -> Request:
    """Return the request that waits for replicas after writes. Empty if no replica must confirm.

    Replicas get a quarter of the timeout of a call. So callers get the answer in time, and so do those whose calls
    waited behind it.

    Raises:
        InvalidArgument: the durability is neither "primary" nor "replicated", or replicas is no int above 0.
    """
    if durability not in ("primary", "replicated"):
        raise InvalidArgument(
            f'durability must be "primary" or "replicated" (a replica confirms each write), got {durability!r}',
            argument="durability",
        )
    if type(replicas) is not int or replicas < 1:
        raise InvalidArgument(f"replicas must be an int above 0, got {replicas!r}", argument="replicas")
    return ("WAIT", replicas, max(1, int(timeout_seconds * 250))) if durability == "replicated" else ()


def checked_size(entries: int) -> int:
    """Refuse a cache without room for entries.

    Raises:
        InvalidArgument: it is no int above 0.
    """
    if type(entries) is not int or entries < 1:
        raise InvalidArgument(f"cache_entries must be an int above 0, got {entries!r}", argument="cache_entries")
    return entries
