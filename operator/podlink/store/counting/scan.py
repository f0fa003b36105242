"""The walk over the keyspace: which services does Redis know, and which listed links have expired.

It looks at every key once, in slices that hold the server up for a millisecond or so each. SCAN promises that a key
which is there all the time is seen, and that it may be seen twice; one that comes or goes meanwhile may be missed, as
may one that moves from server to server of a Cluster.
"""

import logging
import re
from collections.abc import AsyncIterator, Iterable
from typing import Final

from podlink.domain import keys
from podlink.domain.errors import RedisUnavailable, ScriptError
from podlink.domain.keys import ServiceName, Uid
from podlink.store import operations
from podlink.store.aio.executor import StatefulExecutor

logger: Final = logging.getLogger("podlink.scan")

_SLICE_KEYS: Final = 1000

# A glob has no alternation. Column by column, this holds "stat(e)" and "work(load)" and leaves out the keys of links,
# of which there are far more, so that the server sends none of them.
_SERVICE_KEYS: Final = ":[sw][to][ar][tk]*"
_ALL_KEYS: Final = ":*"


async def supports_field_expiry(executor: StatefulExecutor) -> bool:
    """Whether the server expires single hash fields by itself, so that links need no pruning.

    Raises:
        RedisUnavailable: no answer.
    """
    return await executor.run(operations.field_expiry_supported())


async def scan_services(
    executor: StatefulExecutor, namespace: str | None = None, *, prune: bool = False
) -> AsyncIterator[set[ServiceName]]:
    """Find every service that has a key: states, a workload state, or only versions, loads or expiries left over.

    Args:
        executor: runs the slices.
        namespace: only this one; None for all.
        prune: on the way, delete the fields of links whose string is gone, for servers that cannot expire a field by
            themselves.

    Yields:
        `(namespace, service)` pairs, a slice of the keyspace at a time; one may come in several slices.

    Raises:
        InvalidArgument: an invalid namespace.
        RedisUnavailable: no answer; the walk has to be started again.
    """
    async for slice_ in walk(executor, namespace, _ALL_KEYS if prune else _SERVICE_KEYS):
        if prune:
            await _prune(executor, slice_)
        found = {service for key in slice_ if (service := keys.service_of_key(key))}
        if found:
            yield found


async def walk(
    executor: StatefulExecutor, namespace: str | None, rest: str, *, slice_keys: int = _SLICE_KEYS
) -> AsyncIterator[list[str]]:
    """Go once over the whole keyspace: of a Cluster, over that of each primary in turn.

    Args:
        executor: runs the slices.
        namespace: only the keys of this one; None for all.
        rest: glob of what follows the namespace in a key.
        slice_keys: about how many keys the server looks at for one slice.

    Yields:
        The keys that match, a slice of the keyspace at a time: often none, and a key may come twice.

    Raises:
        InvalidArgument: an invalid namespace.
        RedisUnavailable: no answer; the walk has to be started again.
    """
    if namespace is not None:
        namespace = keys.checked_namespace(namespace)
    pattern = "sf:{" + ("*" if namespace is None else _literal(namespace)) + rest
    for node in await executor.nodes(anew=True):
        cursor = -1
        while cursor != 0:
            cursor, found = await executor.run(operations.scan(max(cursor, 0), pattern, slice_keys, node=node))
            yield found


async def _prune(executor: StatefulExecutor, found: Iterable[str]) -> None:
    uids = sorted({uid for key in found if (uid := keys.uid_of_key(key))})
    # Listing a uid's links prunes them.
    results = await executor.run_many([operations.get_linked_services(*uid) for uid in uids])
    for uid, result in zip(uids, results, strict=True):
        if isinstance(result, RedisUnavailable):
            raise result
        if isinstance(result, ScriptError):
            _leave(uid, result)


def _leave(uid: Uid, error: ScriptError) -> None:
    # Somebody put something else under this key. That must not keep every other uid from being pruned.
    logger.warning("cannot prune the links of uid %r: %s", uid.uid, error, extra=uid._asdict())


def _literal(text: str) -> str:
    return re.sub(r"([\\*?\[\]])", r"\\\1", text)
