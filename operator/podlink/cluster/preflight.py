"""What the operator has to be allowed on the API server, and whether it is.

A right that is missing shows late otherwise (the first PodLink that is deleted finds that finalizers cannot be
patched), and as an error among others.
"""

import asyncio
import logging
from collections.abc import Iterator, Sequence

import msgspec

from podlink.cluster.client import ApiError, Cluster
from podlink.cluster.namespaces import NamespaceState, namespace_state
from podlink.domain.podlinks import GROUP, PLURAL

logger = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS = 5.0
_LONGEST_PAUSE_SECONDS = 60.0
_PERIOD_SECONDS = 300.0
_SHOWN = 6


class Right(msgspec.Struct, frozen=True):
    """Verbs on one resource; by name where only one object of it is meant."""

    group: str
    resource: str
    verbs: tuple[str, ...]
    subresource: str = ""
    by_name: bool = False

    def __str__(self) -> str:
        place = f".{self.group}" if self.group else ""
        return f"{self.resource}{place}{'/' * bool(self.subresource)}{self.subresource}"


WATCHED = (
    Right("", "pods", ("list", "watch")),
    Right("apps", "statefulsets", ("list", "watch")),
    Right(GROUP, PLURAL, ("list", "watch", "patch")),
    Right(GROUP, PLURAL, ("patch",), subresource="status"),
    Right("events.k8s.io", "events", ("create",)),
)
"""Needed in every namespace that is watched, or in all."""

LEASE = (
    Right("coordination.k8s.io", "leases", ("get", "update"), by_name=True),
    Right("coordination.k8s.io", "leases", ("create",)),
)
"""Needed in the namespace of the Lease, of the one Lease; a role cannot grant `create` by name."""


class Preflight:
    """Asks whether all rights are there: at the start, every five minutes, and soon when one is or seems missing.

    Attributes:
        problem: which rights are missing; None when none is.
    """

    def __init__(self, cluster: Cluster, namespaces: Sequence[str], lease: tuple[str, str] | None) -> None:
        """Ask nothing yet.

        Args:
            cluster: what to ask.
            namespaces: that are watched; empty: all.
            lease: namespace and name of the Lease, if there is one.
        """
        self._cluster = cluster
        self._namespaces = namespaces
        self._lease = lease
        self._refused = asyncio.Event()
        self._missing: set[str] = set()
        self.problem: str | None = None

    async def run(self) -> None:
        """Ask until cancelled."""
        self._cluster.on_forbidden = self._refused.set
        pause = _FIRST_PAUSE_SECONDS
        while True:
            self._refused.clear()
            fine = await self._ask()
            await asyncio.sleep(pause)
            # Also where something is refused again and again for another reason: to ask takes the server's time.
            pause = min(_LONGEST_PAUSE_SECONDS, 2 * pause)
            if fine:
                try:
                    async with asyncio.timeout(_PERIOD_SECONDS):
                        await self._refused.wait()
                except TimeoutError:
                    pause = _FIRST_PAUSE_SECONDS

    async def _ask(self) -> bool:
        """Ask once; return whether all rights are known to be there."""
        try:
            missing = await missing_rights(self._cluster, await self._present(), self._lease)
        except ApiError as error:
            # If the server is away, the sweep or the Lease says so; the rights are as they were.
            logger.warning("which rights are missing cannot be asked: %s", error)
            return False
        self._tell(await self._say(missing) if missing else None)
        return not missing

    def _tell(self, problem: str | None) -> None:
        if problem and problem != self.problem:
            logger.error("%s", problem)
        if self.problem and not problem:
            logger.info("no right is missing any more")
        self.problem = problem

    async def _say(self, missing: Sequence[str]) -> str:
        try:
            name = await self._cluster.own_name()
        except ApiError:
            # It need not be allowed, or known to an old server.
            name = "the operator's account"
        shown = ", ".join(missing[:_SHOWN]) + (f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else "")
        return f"{name} may not {shown}: grant it by a role that is bound to it (the chart has them all)"

    async def _present(self) -> list[str | None]:
        """The namespaces to ask about; None for all.

        One that is gone or being deleted is left out. Its role goes with it, and the scope itself says what is wrong.
        """
        present: list[str | None] = [] if self._namespaces else [None]
        for namespace in self._namespaces:
            state = await namespace_state(self._cluster, namespace)
            if state in (NamespaceState.ACTIVE, NamespaceState.UNKNOWN):
                present.append(namespace)
            if state is not NamespaceState.MISSING:
                self._missing.discard(namespace)
            elif namespace not in self._missing:
                self._missing.add(namespace)
                logger.warning("--namespace %s: there is no such namespace (yet)", namespace)
        return present


async def missing_rights(
    cluster: Cluster, namespaces: Sequence[str | None], lease: tuple[str, str] | None
) -> list[str]:
    """Ask the API server which rights are missing.

    Args:
        cluster: what to ask.
        namespaces: that are watched; None among them: all.
        lease: namespace and name of the Lease, if there is one.

    Returns:
        A phrase for each, such as "patch podlinks.podlink.io/status in namespace games".

    Raises:
        ApiError: the server could not be asked.
    """
    return [
        f"{attributes['verb']} {right} {where}"
        for right, where, attributes in _needed(namespaces, lease)
        if not await cluster.is_allowed(attributes)
    ]


def _needed(
    namespaces: Sequence[str | None], lease: tuple[str, str] | None
) -> Iterator[tuple[Right, str, dict[str, str]]]:
    for namespace in namespaces:
        where = f"in namespace {namespace}" if namespace else "in all namespaces"
        for right in WATCHED:
            yield from _asked(right, where, namespace or "")
    if lease:
        namespace, name = lease
        for right in LEASE:
            yield from _asked(right, f"in namespace {namespace}", namespace, name if right.by_name else "")


def _asked(right: Right, where: str, namespace: str, name: str = "") -> Iterator[tuple[Right, str, dict[str, str]]]:
    for verb in right.verbs:
        yield (
            right,
            where,
            {
                "group": right.group,
                "resource": right.resource,
                "subresource": right.subresource,
                "verb": verb,
                "namespace": namespace,
                "name": name,
            },
        )
