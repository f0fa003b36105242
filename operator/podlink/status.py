"""A picture of services, pods and PodLinks for people, from Redis and the cluster, as tables or as lines."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click
import msgspec
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from podlink.cluster.access import load_access
from podlink.cluster.client import ApiError, Cluster
from podlink.cluster.kubeconfig import NoClusterError
from podlink.controller.links import run_groups
from podlink.controller.redis_advice import redis_advice
from podlink.domain import keys
from podlink.domain.errors import PodLinkError
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

_FOLDED = 16
"""Characters that a cell of a longer name keeps at least, before the table is given up for a list."""


class ServiceStatus(msgspec.Struct, frozen=True):
    """One service as Redis has it."""

    namespace: str
    name: str
    state: str | None
    service: Service


class Snapshot(msgspec.Struct, frozen=True):
    """Everything at one moment, as far as it could be read."""

    services: list[ServiceStatus]
    links: list[PodLink] | None
    """None where there is no cluster to ask, or where it does not answer."""
    unread: Sequence[str] = ()
    """What could not be read, a sentence each."""


async def show(target: Target, namespaces: Sequence[str]) -> bool:
    """Print the picture once: tables on a terminal, lines elsewhere. Warnings go to standard error.

    Returns:
        Whether everything could be read.

    Raises:
        PodLinkError: Redis cannot be read, or the kubeconfig cannot be used.
    """
    cluster: Cluster | None = None
    notes: list[str] = []
    try:
        cluster = await Cluster.connect(load_access())
    except NoClusterError as error:
        notes.append(f"only what Redis has is shown; there is no cluster to compare it with: {error}")
    try:
        async with StatefulExecutor.from_url(target.url, **target.options) as executor:
            snapshot = await gather(cluster, executor, namespaces)
            notes += await redis_advice(executor)
    finally:
        if cluster is not None:
            await cluster.aclose()
    if sys.stdout.isatty():
        Console().print(draw(snapshot))
    else:
        for line in lines(snapshot) or ["no services" if snapshot.links is None else "no services and no PodLinks"]:
            click.echo(line)
    for note in (*snapshot.unread, *notes):
        click.echo(f"Warning: {note}", err=True)
    return not snapshot.unread


async def gather(cluster: Cluster | None, executor: StatefulExecutor, namespaces: Sequence[str]) -> Snapshot:
    """Read services and PodLinks, of all namespaces when none is named; without a cluster, the services alone.

    Raises:
        RedisUnavailable: Redis cannot be read.
    """
    scopes = tuple(namespaces) or (None,)
    found: set[tuple[str, str]] = set()
    for scope in scopes:
        async for batch in scan_services(executor, scope):
            found |= batch
    services, unread = await _read_services(executor, sorted(found))
    if cluster is None:
        return Snapshot(services, None, unread)
    links: list[PodLink] = []
    try:
        for scope in scopes:
            links += (await cluster.list_podlinks(scope, _readable)).items
    except ApiError as error:
        return Snapshot(services, None, [*unread, f"only what Redis has is shown: {error}"])
    return Snapshot(services, sorted(links, key=lambda link: link.key), unread)


async def _read_services(
    executor: StatefulExecutor, names: Sequence[tuple[str, str]]
) -> tuple[list[ServiceStatus], list[str]]:
    """Read services, and return them with a sentence for each key that is not what it must be."""
    reads: list[Operation[Any]] = []
    for name in names:
        reads += [operations.get_workload_state(*name), operations.get_service(*name)]
    replies = await run_groups(executor, reads, 1)
    services, unread = [], []
    for number, name in enumerate(names):
        workload, service = replies[2 * number : 2 * number + 2]
        if isinstance(workload, PodLinkError) or isinstance(service, PodLinkError):
            unread.append(await _wrong_keys(executor, name, workload, service))
        state = None if isinstance(workload, PodLinkError) else workload[0]
        pods = Service({}, {}) if isinstance(service, PodLinkError) else service[0]
        if state or pods.states:
            services.append(ServiceStatus(*name, state, pods))
    return services, unread


async def _wrong_keys(executor: StatefulExecutor, name: tuple[str, str], *replies: object) -> str:
    """Say which keys of a service are not of the type that they must be, or else what Redis said."""
    expected = {
        keys.workload_key(*name): "string",
        keys.state_key(*name): "hash",
        keys.load_key(*name): "hash",
        keys.expiry_key(*name): "zset",
    }
    found = await run_groups(executor, [operations.key_type(key) for key in expected], 1)
    wrong = [
        f"key {printable(key)} is a {kind[0]} instead of a {wanted}"
        for (key, wanted), kind in zip(expected.items(), found, strict=True)
        if not isinstance(kind, PodLinkError) and kind[0] not in (wanted, "none")
    ]
    said = [str(reply) for reply in replies if isinstance(reply, PodLinkError)]
    remedy = "; find out who wrote it and delete it" if wrong else ""
    return f"service {name[0]}/{printable(name[1])} is not shown in full: {', '.join(wrong or said)}{remedy}"


def _readable(body: Mapping[str, Any]) -> PodLink | None:
    try:
        return read_podlink(body)
    except InvalidPodLinkError:
        return None  # the operator leaves it alone too, and says why


class _Column(msgspec.Struct, frozen=True):
    """A column of a table: its title, and whether long cells may be broken."""

    title: str
    folds: bool = False


_SERVICE_COLUMNS = [
    _Column("Namespace", True),
    _Column("Service", True),
    _Column("Workload"),
    _Column("Pod"),
    _Column("State"),
    _Column("Links"),
]
_LINK_COLUMNS = [
    _Column("Namespace", True),
    _Column("PodLink", True),
    _Column("Uid", True),
    _Column("Service", True),
    _Column("Pod"),
    _Column("Phase"),
    _Column("Reason"),
]


class _Section(msgspec.Struct):
    """A table, or where that is too wide for the terminal, a list with a line for each cell."""

    title: str
    columns: list[_Column]
    rows: list[list[Text]]

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> RenderResult:
        if self._width() <= options.max_width:
            yield self._table()
        else:
            yield Text(self.title, style="italic")
            yield self._list()

    def _width(self) -> int:
        """The least width of a table that can be read."""
        width = 1
        for number, column in enumerate(self.columns):
            longest = max([len(column.title), *(row[number].cell_len for row in self.rows)])
            width += 3 + (min(longest, _FOLDED) if column.folds else longest)
        return width

    def _table(self) -> Table:
        table = Table(title=self.title)
        for column in self.columns:
            table.add_column(column.title, no_wrap=not column.folds, overflow="fold")
        for row in self.rows:
            table.add_row(*row)
        return table

    def _list(self) -> Table:
        cells = Table.grid(padding=(0, 1))
        cells.add_column(no_wrap=True)
        cells.add_column(overflow="fold")
        for row in self.rows:
            for number, (column, cell) in enumerate(zip(self.columns, row, strict=True)):
                if cell.plain:
                    # A row without its first cells goes on with the entry above it.
                    cells.add_row(f"{'  ' if number else '- '}{column.title}", cell)
        return cells


def draw(snapshot: Snapshot) -> RenderableType:
    """Return the picture as two tables; on a narrow terminal, as two lists."""
    services = []
    for entry in snapshot.services:
        head = [Text(printable(entry.namespace)), Text(printable(entry.name)), _colored(entry.state)]
        pods = [
            [Text(str(pod_id)), _colored(state), Text(str(entry.service.loads.get(pod_id, 0)))]
            for pod_id, state in sorted(entry.service.states.items())
        ]
        for pod in pods or [[Text()] * 3]:
            services.append([*head, *pod])
            head = [Text()] * 3
    sections = [_Section("Services", _SERVICE_COLUMNS, services)]
    if snapshot.links is not None:
        sections.append(_Section("PodLinks", _LINK_COLUMNS, [_link_cells(link) for link in snapshot.links]))
    return Group(*sections)


def _link_cells(link: PodLink) -> list[Text]:
    # As Text, because a uid may hold what rich would take for its markup.
    words = (*link.key, printable(link.spec.uid), printable(link.spec.service), _pod(link))
    return [*map(Text, words), _colored(link.status.phase), Text(link.status.reason)]


def lines(snapshot: Snapshot) -> list[str]:
    """Return the picture as plain lines, one for each service and PodLink."""
    text = []
    for entry in snapshot.services:
        pods = " ".join(
            f"{pod_id}={state}({entry.service.loads.get(pod_id, 0)})"
            for pod_id, state in sorted(entry.service.states.items())
        )
        text.append(f"service {entry.namespace}/{printable(entry.name)} {entry.state or '-'} {pods}".rstrip())
    for link in snapshot.links or ():
        phase, reason = link.status.phase or "-", link.status.reason or "-"
        text.append(
            f"podlink {link.namespace}/{link.name} uid={printable(link.spec.uid)} "
            f"service={printable(link.spec.service)} {phase} reason={reason} pod={_pod(link) or '-'}"
        )
    return text


def printable(text: str) -> str:
    """Return a name with escapes for what would break a line, turn its direction, or cannot be written to stdout."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return "".join(char if _can_be_shown(char, encoding) else _escaped(char) for char in text)


def _can_be_shown(char: str, encoding: str) -> bool:
    try:
        return char.isprintable() and bool(char.encode(encoding))
    except UnicodeEncodeError:
        return False


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode()


def _pod(link: PodLink) -> str:
    return "" if link.status.pod_id is None else str(link.status.pod_id)


def _colored(word: str | None) -> Text:
    return Text(word or "-", style=_STYLES.get(word or "", "yellow"))
