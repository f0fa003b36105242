"""Releases PodLinks that no operator serves any more: their links in Redis, and then our finalizer.

The rules are the operator's own for a PodLink that is deleted: only a link that is still this PodLink's is removed.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any

import click
import msgspec

from podlink.cluster.access import load_access
from podlink.cluster.client import ApiError, Cluster
from podlink.cluster.lease import NAMESPACES, is_held
from podlink.cluster.namespaces import NamespaceState, namespace_state
from podlink.controller.links import apply, read_records
from podlink.domain.decide import Decision, Facts, ReleaseLink, decide
from podlink.domain.errors import PodLinkError
from podlink.domain.inventory import Inventory
from podlink.domain.podlinks import FINALIZER, InvalidPodLinkError, PodLink, read_podlink
from podlink.domain.registry import PodLinks
from podlink.redis_settings import Target
from podlink.store.aio.executor import StatefulExecutor

_AT_A_TIME = 16
"""PodLinks handled at once; most of that time is the API server's."""


class NotReleasedError(PodLinkError):
    """Some PodLinks were not released, or none may be; the text says why and what to do."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What `podlink release` was told."""

    namespaces: tuple[str, ...]
    """Empty: all namespaces."""
    redis: Target | None
    """None: leave the links in Redis alone."""
    dry_run: bool
    force: bool
    """Also where an operator serves the namespace."""


async def release(request: Request) -> None:
    """Release the PodLinks that carry our finalizer, and print a line for each.

    Raises:
        NotReleasedError: an operator serves them, or some could not be released.
        PodLinkError: the cluster or Redis cannot be used.
    """
    async with AsyncExitStack() as stack:
        cluster = await Cluster.connect(load_access())
        stack.push_async_callback(cluster.aclose)
        if not request.force:
            await _refuse_served(cluster, request.namespaces)
        executor = None
        if request.redis is not None:
            executor = StatefulExecutor.from_url(request.redis.url, **request.redis.options)
            await stack.enter_async_context(executor)
        links = await _list(cluster, request.namespaces)
        work = _Release(cluster, executor, links, dry_run=request.dry_run)
        held = [link for link in links if link.has_finalizer]
        failed = 0
        for start in range(0, len(held), _AT_A_TIME):
            outcomes = await asyncio.gather(*(work.release(link) for link in held[start : start + _AT_A_TIME]))
            failed += outcomes.count(False)
    if not held:
        click.echo(f"There is nothing to release: no PodLink there has the finalizer {FINALIZER}", err=True)
    if failed:
        raise NotReleasedError(f"{failed} of {len(held)} PodLinks were not released; the lines above say why")


class _Release:
    """Releases PodLinks one by one, knowing all that were listed."""

    def __init__(self, cluster: Cluster, executor: StatefulExecutor | None, links: PodLinks, *, dry_run: bool) -> None:
        self._cluster = cluster
        self._executor = executor
        self._links = links
        self._dry_run = dry_run

    async def release(self, link: PodLink) -> bool:
        """Release one PodLink, and say what came of it; return whether it is released."""
        name = f"podlink/{link.name} in namespace {link.namespace}"
        try:
            done = [await self._release_link(link), await self._take_finalizer(link)]
        except PodLinkError as error:
            click.echo(f"{name}: {error}", err=True)
            return False
        click.echo(f"{name}: {', '.join(done)}{' (dry run)' if self._dry_run else ''}")
        return True

    async def _release_link(self, link: PodLink) -> str:
        if self._executor is None:
            return "link kept"
        decision = await self._decide(self._executor, link)
        if not isinstance(decision.action, ReleaseLink):
            return "no link of its own"
        if not self._dry_run:
            await apply(self._executor, link, decision.action)
        return f"link to pod {decision.action.pod_id} released"

    async def _decide(self, executor: StatefulExecutor, link: PodLink) -> Decision:
        (record,) = await read_records(executor, [link])
        if isinstance(record, PodLinkError):
            raise record
        facts = Facts(
            link=msgspec.structs.replace(link, deleting=True),
            record=record,
            service=Inventory().view(link.namespace, link.spec.service),
            holder=self._links.holder(link),
            now=datetime.now(UTC),
        )
        return decide(facts)

    async def _take_finalizer(self, link: PodLink) -> str:
        if not self._dry_run:
            others = [name for name in link.finalizers if name != FINALIZER]
            patched = await self._cluster.patch_finalizers(link, others)
            if FINALIZER in patched["metadata"].get("finalizers", ()):
                raise NotReleasedError(
                    "the finalizer came back, because an admission policy adds it to each PodLink: delete the "
                    "MutatingAdmissionPolicyBinding podlink-finalizer, or delete this PodLink first"
                )
        return "finalizer removed"


async def _list(cluster: Cluster, namespaces: Sequence[str]) -> PodLinks:
    links = PodLinks()
    for namespace in namespaces or (None,):
        listed = await cluster.list_podlinks(namespace, _read)
        links.replace(listed.items, listed.version, namespace)
    return links


def _read(body: Mapping[str, Any]) -> PodLink | None:
    try:
        return read_podlink(body)
    except InvalidPodLinkError as error:
        metadata = body["metadata"]
        click.echo(f"podlink/{metadata['name']} in namespace {metadata['namespace']} is left out: {error}", err=True)
        return None


async def _refuse_served(cluster: Cluster, namespaces: Sequence[str]) -> None:
    """Refuse if the Lease of a running operator says that it serves one of the namespaces.

    An operator without `--leader-elect` has no Lease, so nobody can tell.

    Raises:
        NotReleasedError: one does.
    """
    try:
        leases = await cluster.list_leases()
    except ApiError as error:
        click.echo(f"Whether an operator serves these namespaces cannot be told: {error}", err=True)
        return
    # In a namespace that is being deleted, every PodLink has to be released anyway.
    asked = {each for each in namespaces if await namespace_state(cluster, each) is not NamespaceState.TERMINATING}
    for lease in leases if asked or not namespaces else ():
        metadata = lease["metadata"]
        noted = metadata.get("annotations", {}).get(NAMESPACES)
        if noted is None or not is_held(lease):
            continue
        served = {each for each in noted.split(",") if each}
        both = served & asked if served and asked else served | asked
        if both or not served:
            what = ", ".join(sorted(both)) or "all namespaces"
            holder = f"Lease {metadata['namespace']}/{metadata['name']}, held by {lease['spec']['holderIdentity']}"
            raise NotReleasedError(
                f"an operator serves {what} ({holder}). Delete the PodLinks with kubectl, and it releases them; or "
                "stop it first; or use --force"
            )
