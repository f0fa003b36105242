"""Links in Redis, as the decisions on PodLinks need them: read as records, changed by actions."""

from collections.abc import Sequence
from typing import Any

from podlink.domain.decide import LinkRecord, PickPod, ReleaseLink, SetLink, Write
from podlink.domain.errors import PodLinkError, RedisUnavailable
from podlink.domain.podlinks import PodLink
from podlink.store import operations
from podlink.store.aio.executor import StatefulExecutor
from podlink.store.operations import Operation


async def read_records(executor: StatefulExecutor, links: Sequence[PodLink]) -> list[LinkRecord | PodLinkError]:
    """Read what Redis holds for PodLinks, in one pipeline.

    Returns:
        For each, the record; or the error, where another client put something under its keys that is no link.

    Raises:
        RedisUnavailable: nothing is said of any of them then.
    """
    reads: list[Operation[Any]] = []
    for link in links:
        reads += [
            operations.get_linked_pod(*link.link_key),
            operations.link_ttl(*link.link_key),
            operations.listed_pod(*link.link_key),
        ]
    records: list[LinkRecord | PodLinkError] = []
    for group in await run_groups(executor, reads, 3):
        if isinstance(group, PodLinkError):
            records.append(group)
        else:
            pod_id, ttl_ms, listed = group
            records.append(LinkRecord(pod_id, ttl_ms if ttl_ms is not None and ttl_ms >= 0 else None, listed))
    return records


async def apply(executor: StatefulExecutor, link: PodLink, action: SetLink | PickPod | ReleaseLink) -> None:
    """Carry an action out. What came of it is for the next reading of the record to say.

    Raises:
        PodLinkError: as the executor's methods.
    """
    await run_all(executor, _operations(link, action))


def _operations(link: PodLink, action: SetLink | PickPod | ReleaseLink) -> list[Operation[Any]]:
    key = link.link_key
    match action:
        case ReleaseLink(pod_id, persist_seconds):
            return [operations.remove_linked_pod_with_id(*key, pod_id, persist_seconds=persist_seconds)]
        case PickPod(persist_seconds, instead_of):
            pick = operations.compute_linked_pod_if_absent(*key, persist_seconds=persist_seconds)
            if instead_of is None:
                return [pick]
            return [operations.remove_linked_pod_with_id(*key, instead_of), pick]
        case SetLink(Write.SET, pod_id, persist_seconds):
            return [operations.set_linked_pod(*key, pod_id, persist_seconds=persist_seconds)]
        case SetLink(Write.IF_ABSENT, pod_id, persist_seconds):
            return [operations.set_linked_pod_if_absent(*key, pod_id, persist_seconds=persist_seconds)]
        case SetLink(_, pod_id, persist_seconds, expected):
            return [operations.try_set_linked_pod(*key, pod_id, persist_seconds=persist_seconds, expected=expected)]


async def run_groups(
    executor: StatefulExecutor, work: Sequence[Operation[Any]], size: int
) -> list[list[Any] | PodLinkError]:
    """Run operations in one pipeline; return the replies in groups, or the first error in place of its group.

    Raises:
        RedisUnavailable: one of them got no answer.
    """
    replies = await executor.run_many(work)
    groups: list[list[Any] | PodLinkError] = []
    for start in range(0, len(replies), size):
        group = list(replies[start : start + size])
        errors = [reply for reply in group if isinstance(reply, PodLinkError)]
        for error in errors:
            if isinstance(error, RedisUnavailable):
                raise error
        groups.append(errors[0] if errors else group)
    return groups


async def run_all(executor: StatefulExecutor, work: Sequence[Operation[Any]]) -> list[Any]:
    """Run operations in one pipeline and raise the first error among them."""
    replies = await executor.run_many(work)
    for reply in replies:
        if isinstance(reply, PodLinkError):
            raise reply
    return list(replies)
