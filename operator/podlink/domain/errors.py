"""The executor's errors, and the base class of every error that PodLink raises on purpose.

A caller that wants to tell them apart needs three answers: was my argument wrong (nothing was sent), is Redis gone (and
may the call have been applied all the same), or did the server refuse what was asked. One class each. None of them
ever carries a password: their texts name an address, an argument or a script.
"""

from collections.abc import Mapping
from typing import Any


class PodLinkError(Exception):
    """Base class of all errors PodLink raises on purpose."""


class InvalidArgument(PodLinkError, ValueError):  # noqa: N818 - named for what it tells the caller
    """An argument that could not be sent; it was refused before any I/O.

    Attributes:
        argument: name of the argument, as in the signature of the method that was called.
    """

    def __init__(self, message: str, *, argument: str = "") -> None:
        super().__init__(message)
        self.argument = argument


class WrongEventLoop(PodLinkError, RuntimeError):  # noqa: N818 - named for what it tells the caller
    """An asyncio executor was used from another event loop than the one of its first call. Nothing was sent."""


class RedisUnavailable(PodLinkError):  # noqa: N818 - named for what it tells the caller
    """Redis cannot be reached, did not answer in time, or cannot serve now (loading, read-only, out of memory).

    Attributes:
        maybe_applied: True when the request had left and no answer came back: the call may or may not have been
            applied. False when it is certain that it was not.
    """

    def __init__(self, message: str, *, maybe_applied: bool = False) -> None:
        super().__init__(message)
        self.maybe_applied = maybe_applied


class NotReplicated(RedisUnavailable):
    """The primary applied the call, but no replica confirmed it in time: a failover may lose it.

    Raised with `durability="replicated"` only; `maybe_applied` is True.
    """


class ScriptError(PodLinkError):
    """The server refused a script or a command, or its reply is not what the key layout promises.

    Attributes:
        script: name of the Lua script, or of the Redis command where no script is involved.
        server_message: what the server said; for an unexpected reply, what is wrong with it.
    """

    def __init__(self, message: str, *, script: str = "", server_message: str = "") -> None:
        super().__init__(message)
        self.script = script
        self.server_message = server_message


class PartialFailure(PodLinkError):  # noqa: N818 - named for what it tells the caller
    """Some of the calls that a bulk method stands for failed, and some did not.

    Attributes:
        results: uid -> result, of those that were answered.
        errors: uid -> error, of those that failed; each says for itself whether it may have been applied.
    """

    def __init__(self, message: str, *, results: Mapping[str, Any], errors: Mapping[str, PodLinkError]) -> None:
        super().__init__(message)
        self.results = results
        self.errors = errors
