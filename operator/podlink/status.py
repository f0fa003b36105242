"""A picture of services, pods and PodLinks for people, from Redis and the cluster, as tables or as lines."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click
import msgspec
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from podlink.cluster.client import Cluster
from podlink.controller.links import run_all
from podlink.domain.podlinks import InvalidPodLinkError, PodLink, read_podlink
from podlink.redis_settings import Target
from podlink.store import operations
from podlink.store.aio.executor import StatefulExecutor
from podlink.store.counting.scan import scan_services
from podlink.store.operations import Operation, Service

_STYLES = {
    "Ready": "green",
    "Available": "green",
    "Linked": "green",
    "Conflict": "red",
    "Failed": "red",
    "Unavailable": "red",
    "Degraded": "red",
}


class ServiceStatus(msgspec.Struct, frozen=True):
    """One service as Redis has it."""

    namespace: str
    name: str
    state: str | None
    service: Service


class Snapshot(msgspec.Struct, frozen=True):
    """Everything at one moment."""

    services: list[ServiceStatus]
    links: list[PodLink]


async def show(target: Target, namespaces: Sequence[str]) -> None:
    """Print the picture once: tables on a terminal, lines elsewhere.

    Raises:
        PodLinkError: Redis or the cluster cannot be read.
    """
    cluster = await Cluster.connect()
    try:
        async with StatefulExecutor.from_url(target.url, **target.options) as executor:
            snapshot = await gather(cluster, executor, namespaces)
    finally:
        await cluster.aclose()
    if sys.stdout.isatty():
        Console().print(draw(snapshot))
    else:
        for line in lines(snapshot) or ["no services and no PodLinks"]:
            click.echo(line)


async def gather(cluster: Cluster, executor: StatefulExecutor, namespaces: Sequence[str]) -> Snapshot:
    """Read services and PodLinks, of all namespaces when none is named.

    Raises:
        PodLinkError: Redis or the cluster cannot be read.
    """
    found: set[tuple[str, str]] = set()
    links: list[PodLink] = []
    for scope in tuple(namespaces) or (None,):
        async for batch in scan_services(executor, scope):
            found |= batch
        links += (await cluster.list_podlinks(scope, _readable)).items
    keys = sorted(found)
    reads: list[Operation[Any]] = []
    for key in keys:
        reads += [operations.get_workload_state(*key), operations.get_service(*key)]
    replies = await run_all(executor, reads)
    services = [ServiceStatus(*key, *replies[2 * i : 2 * i + 2]) for i, key in enumerate(keys)]
    links.sort(key=lambda link: link.key)
    return Snapshot([service for service in services if service.state or service.service.states], links)


def _readable(body: Mapping[str, Any]) -> PodLink | None:
    try:
        return read_podlink(body)
    except InvalidPodLinkError:
        return None  # the operator leaves it alone too, and says why


def draw(snapshot: Snapshot) -> RenderableType:
    """Return the picture as two tables."""
    services = Table("Namespace", "Service", "Workload", "Pod", "State", "Links", title="Services")
    for entry in snapshot.services:
        head = [Text(entry.namespace), Text(printable(entry.name)), _colored(entry.state)]
        if not entry.service.states:
            services.add_row(*head)
        for pod_id, state in sorted(entry.service.states.items()):
            services.add_row(*head, str(pod_id), _colored(state), str(entry.service.loads.get(pod_id, 0)))
            head = [Text()] * 3
    links = Table("Namespace", "PodLink", "Uid", "Service", "Pod", "Phase", "Reason", title="PodLinks")
    for link in snapshot.links:
        # As Text, because a uid may hold what rich would take for its markup.
        words = (*link.key, printable(link.spec.uid), printable(link.spec.service), _pod(link))
        links.add_row(*map(Text, words), _colored(link.status.phase), link.status.reason)
    return Group(services, links)


def lines(snapshot: Snapshot) -> list[str]:
    """Return the picture as plain lines, one for each service and PodLink."""
    text = []
    for entry in snapshot.services:
        pods = " ".join(
            f"{pod_id}={state}({entry.service.loads.get(pod_id, 0)})"
            for pod_id, state in sorted(entry.service.states.items())
        )
        text.append(f"service {entry.namespace}/{printable(entry.name)} {entry.state or '-'} {pods}".rstrip())
    for link in snapshot.links:
        phase, reason = link.status.phase or "-", link.status.reason or "-"
        text.append(
            f"podlink {link.namespace}/{link.name} uid={printable(link.spec.uid)} "
            f"service={printable(link.spec.service)} {phase} reason={reason} pod={_pod(link) or '-'}"
        )
    return text


def printable(text: str) -> str:
    """Return a name with what would break a line, or turn its direction, as escapes: a uid may hold such characters."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _pod(link: PodLink) -> str:
    return "" if link.status.pod_id is None else str(link.status.pod_id)


def _colored(word: str | None) -> Text:
    return Text(word or "-", style=_STYLES.get(word or "", "yellow"))
