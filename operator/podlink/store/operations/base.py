"""What an operation is: what calls of one kind have in common (a shape), and what one call adds to it.

A gateway makes tens of thousands of calls a second to a few services. Whatever a call shares with the next one (names
checked, keys half built, the script, how to read the reply) is put together once, and remembered.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from podlink.store.operations.scripts import Script

S = TypeVar("S", bound="Shape[Any]")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

PICK_WEIGHT: Final = 5
"""`Shape.weight` of what reads all pods of a service: as measured with ten of them, a usual number. The server takes
longer the more there are, and a caller does not know how many."""

_SHAPES: Final = 4096
"""Shapes remembered of each kind: services of a gateway times the life times it gives to links."""


@dataclass(frozen=True, slots=True, eq=False)
class Shape(Generic[T_co]):
    """What operations of one kind have in common.

    Attributes:
        name: of the executor method (or builder) it comes from; labels metrics and logs.
        parse: turns the raw reply (bytes or str, RESP2 or RESP3) into the result; raises ValueError, TypeError or
            LookupError if the reply is not what it must be.
        script: the Lua script to run, or None for a plain command.
        command: the plain command, or None for a script. With neither there is nothing to ask: no I/O, an empty reply.
        head: what the uid's keys begin with.
        tails: what they end with: each of these is the end of one key.
        keys: further Redis keys, behind those of the uid. Together they are the script's KEYS.
        before: arguments before those of the single call.
        after: arguments behind them. Together they are the script's ARGV.
        namespace: for logs; None where it does not apply, as with the next.
        service: for logs.
        node: address of the one server of a cluster that is asked, where no key says which.
        weight: how long the server takes for one, as a multiple of what a permanent link takes.
        target: name of the script, or of the command where there is none; empty when there is nothing to ask.
        writes: whether it changes what callers read.
    """

    name: str
    parse: Callable[[Any], T_co]
    script: Script | None = None
    command: str | None = None
    head: str = ""
    tails: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    before: tuple[str | int, ...] = ()
    after: tuple[str | int, ...] = ()
    namespace: str | None = None
    service: str | None = None
    node: str | None = None
    weight: int = 1
    target: str = field(init=False)
    writes: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "target", self.script.name if self.script else self.command or "")
        object.__setattr__(self, "writes", self.script.writes if self.script else self.command == "SET")


@dataclass(slots=True, eq=False)
class Operation(Generic[T_co]):
    """One request to Redis and the reading of its reply; not to be changed (freezing it would double the cost).

    Attributes:
        shape: what it has in common with others.
        uid: whose links it is about; "" where it is about none.
        own: its own arguments, of which all operations of one shape have equally many.
    """

    shape: Shape[T_co]
    uid: str = ""
    own: tuple[str | int, ...] = ()

    @property
    def name(self) -> str:
        """Name of the executor method (or builder) it comes from."""
        return self.shape.name

    @property
    def script(self) -> Script | None:
        """The Lua script it runs, or None."""
        return self.shape.script

    @property
    def target(self) -> str:
        """Name of the script, or of the command where there is none; empty when there is nothing to ask."""
        return self.shape.target

    @property
    def keys(self) -> tuple[str, ...]:
        """Redis keys, in the order of the script's KEYS."""
        shape = self.shape
        return (*[f"{shape.head}{self.uid}{tail}" for tail in shape.tails], *shape.keys)

    @property
    def args(self) -> tuple[str | int, ...]:
        """Arguments, in the order of the script's ARGV."""
        return (*self.shape.before, *self.own, *self.shape.after)

    def request(self, *, with_text: bool = False) -> tuple[str | int, ...]:
        """The words to send; empty when there is nothing to ask.

        Args:
            with_text: name the script by its text, which the server then knows, instead of by its digest.
        """
        keys = self.keys
        if script := self.shape.script:
            how = ("EVAL", script.text) if with_text else ("EVALSHA", script.sha1)
            return (*how, len(keys), *keys, *self.args)
        command = self.shape.command
        return (*command.split(), *keys, *self.args) if command else ()


def remembered(build: Callable[..., S]) -> Callable[..., S]:
    """Make a builder of shapes that returns the same one for the same arguments."""
    # Typed, for True equals 1 and 1.0, but is no podId and no number of seconds.
    cached = functools.lru_cache(maxsize=_SHAPES, typed=True)(build)

    @functools.wraps(build)
    def shape(*arguments: Any) -> S:
        try:
            return cached(*arguments)
        except TypeError:
            # Something unhashable, which is a wrong argument: the builder says which one.
            return build(*arguments)

    return shape


def command(
    name: str,
    words: str,
    parse: Callable[[Any], T],
    *,
    keys: tuple[str, ...] = (),
    args: tuple[str | int, ...] = (),
    namespace: str | None = None,
    service: str | None = None,
    uid: str = "",
    node: str | None = None,
) -> Operation[T]:
    """An operation that is a plain Redis command; without words it asks nothing."""
    shape = Shape(
        name,
        parse,
        command=words or None,
        keys=keys,
        before=args,
        namespace=namespace,
        service=service,
        node=node,
    )
    return Operation(shape, uid)
