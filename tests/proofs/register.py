"""What one link is to its callers: a register of its own, whatever happens to other links.

Life times are so long here that no link expires on the way. What is left of a life time is then whether there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, Literal, NamedTuple, TypeAlias

LONG_SECONDS: Final = 3600

Kind: TypeAlias = Literal[
    "get_linked_pod",
    "get_linked_pod_if_persist",
    "get_linked_services",
    "link_ttl",
    "read_link",
    "set_linked_pod",
    "try_set_linked_pod",
    "set_linked_pod_if_absent",
    "compute_linked_pod_if_absent",
    "remove_linked_pod",
    "remove_linked_pod_with_id",
]
Life: TypeAlias = Literal["permanent", "temporary"]


class Link(NamedTuple):
    """A link that exists. One in its reconnect window is temporary and not listed."""

    pod: int
    life: Life
    listed: bool = True


class Asked(NamedTuple):
    """What was asked of a link, whether alone, in a bulk or in a pipeline.

    Attributes:
        kind: the executor's method, or the builder of the operation.
        pod: the pod to set, or to remove the link to.
        seconds: life time of what is set, or of the reconnect window.
        expected: of `try_set_linked_pod`.
    """

    kind: Kind
    pod: int | None = None
    seconds: int | None = None
    expected: int | None = None

    def __str__(self) -> str:
        named = {"seconds": self.seconds, "expected": self.expected}
        words = [str(self.pod)] if self.pod is not None else []
        words += [f"{name}={value}" for name, value in named.items() if value is not None]
        return f"{self.kind}({', '.join(words)})"


Outcome: TypeAlias = "tuple[object, Link | None]"
"""A result, and what the link is then."""


def outcomes_with(ready: frozenset[int]) -> Callable[[Link | None, Asked], Iterator[Outcome]]:
    """The contract of one link to a service of which these pods are Ready, and stay it."""

    def outcomes(link: Link | None, asked: Asked) -> Iterator[Outcome]:
        if asked.kind != "compute_linked_pod_if_absent":
            yield _outcome(link, asked)
        elif link is not None:
            yield link.pod, link
        else:
            # Which of them is a matter of loads, which are not this link's.
            yield from ((pod, Link(pod, _life(asked))) for pod in ready)
            if not ready:
                yield None, None

    return outcomes


def all_states(pods: frozenset[int]) -> list[Link | None]:
    """Whatever a link can be that points at one of these pods."""
    kept = [Link(pod, "permanent") for pod in sorted(pods)]
    ending = [Link(pod, "temporary", listed) for pod in sorted(pods) for listed in (True, False)]
    return [None, *kept, *ending]


def _outcome(link: Link | None, asked: Asked) -> Outcome:
    match asked.kind:
        case "set_linked_pod":
            return link.pod if link else None, _made(asked)
        case "try_set_linked_pod":
            in_the_way = link and link.life == "permanent" and link.pod not in {asked.pod, asked.expected}
            return ((False, link.pod), link) if link and in_the_way else ((True, asked.pod), _made(asked))
        case "set_linked_pod_if_absent":
            return (link.pod, link) if link else (asked.pod, _made(asked))
        case "remove_linked_pod":
            return link is not None, _released(link, asked)
        case "remove_linked_pod_with_id":
            removed = link is not None and link.pod == asked.pod
            return removed, _released(link, asked) if removed else link
        case _:
            return _read(link, asked), link


def _read(link: Link | None, asked: Asked) -> object:
    match asked.kind:
        case "get_linked_pod_if_persist":
            return link.pod if link and link.life == "permanent" else None
        case "get_linked_services":
            return link.pod if link and link.listed else None
        case "link_ttl":
            return link.life if link else None
        case "read_link":
            return (link.pod, link.life) if link else (None, None)
        case _:
            return link.pod if link else None


def _made(asked: Asked) -> Link:
    if asked.pod is None:
        raise ValueError(f"{asked} names no pod")
    return Link(asked.pod, _life(asked))


def _life(asked: Asked) -> Life:
    return "permanent" if asked.seconds == -1 else "temporary"


def _released(link: Link | None, asked: Asked) -> Link | None:
    return Link(link.pod, "temporary", listed=False) if link and asked.seconds else None
