"""Many links of one service at once: one operation for each uid, and what becomes of their results."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Generic, NamedTuple, TypeVar

from podlink.domain import keys
from podlink.domain.errors import InvalidArgument, PartialFailure, PodLinkError, RedisUnavailable
from podlink.store.operations import links, replies
from podlink.store.operations.base import Operation, command
from podlink.store.operations.services import distinct

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_READS: Final = 500
"""Keys of one read: the server serves nobody else for so many times 0.3 microseconds."""


class Bulk(NamedTuple, Generic[T_co]):
    """Operations that one call of a bulk method stands for.

    Attributes:
        operations: they have no order among them.
        collect: makes the method's result of theirs, each a value or a PodLinkError; or raises.
    """

    operations: Sequence[Operation[Any]]
    collect: Callable[[Sequence[Any]], T_co]


def set_linked_pods(
    namespace: str, pods: Mapping[str, int], service: str, *, persist_seconds: int = keys.PERMANENT
) -> Bulk[dict[str, int | None]]:
    """Link many uids, whatever they were linked to before; each link is atomic, all of them together are not.

    Args:
        namespace: of the service.
        pods: uid -> podId; any number of them.
        service: its name.
        persist_seconds: -1 for permanent links, else the seconds after which they expire.

    Returns:
        uid -> the podId linked before, or None.

    Raises:
        InvalidArgument: an invalid argument; nothing was sent.
        PartialFailure: some links were set, and some were not.
    """
    shape = links.set_shape(namespace, service, persist_seconds)
    return _by_uid([Operation(shape, uid, (pod,)) for uid, pod in _checked(pods)])


def try_set_linked_pods(
    namespace: str,
    pods: Mapping[str, int],
    service: str,
    *,
    persist_seconds: int = keys.PERMANENT,
    expected: Mapping[str, int] | None = None,
) -> Bulk[dict[str, tuple[bool, int]]]:
    """Link many uids, except those that have a permanent link to another pod.

    Args:
        namespace: of the service.
        pods: uid -> podId; any number of them.
        service: its name.
        persist_seconds: -1 for permanent links, else the seconds after which they expire.
        expected: uid -> podId whose permanent link may be replaced all the same.

    Returns:
        uid -> `(True, podId)` where it is set, else `(False, podId of the permanent link in the way)`.

    Raises:
        InvalidArgument: an invalid argument; nothing was sent.
        PartialFailure: some calls were answered, and some were not.
    """
    shape = links.try_set_shape(namespace, service, persist_seconds)
    persist = keys.checked_persist(persist_seconds)
    theirs = dict(_checked({} if expected is None else expected, "expected"))
    return _by_uid([Operation(shape, uid, (pod, persist, theirs.get(uid, ""))) for uid, pod in _checked(pods)])


def set_linked_pods_if_absent(
    namespace: str, pods: Mapping[str, int], service: str, *, persist_seconds: int = keys.PERMANENT
) -> Bulk[dict[str, int]]:
    """Link those of many uids that have no link to the service.

    Args:
        namespace: of the service.
        pods: uid -> podId; any number of them.
        service: its name.
        persist_seconds: -1 for permanent links, else the seconds after which they expire.

    Returns:
        uid -> the podId now linked: ours, or the one that was there.

    Raises:
        InvalidArgument: an invalid argument; nothing was sent.
        PartialFailure: some calls were answered, and some were not.
    """
    shape = links.set_if_absent_shape(namespace, service, persist_seconds)
    return _by_uid([Operation(shape, uid, (pod,)) for uid, pod in _checked(pods)])


def compute_linked_pods_if_absent(
    namespace: str, uids: Iterable[str], service: str, *, persist_seconds: int = keys.PERMANENT
) -> Bulk[dict[str, int | None]]:
    """Find the pods of many uids; each that has none is linked to the `Ready` pod that is least loaded by then.

    Args:
        namespace: of the service.
        uids: any number of them.
        service: its name.
        persist_seconds: -1 for permanent links, else the seconds after which they expire.

    Returns:
        uid -> the podId now linked, or None when there is no link and no `Ready` pod.

    Raises:
        InvalidArgument: an invalid argument; nothing was sent.
        PartialFailure: some calls were answered, and some were not.
    """
    shape = links.compute_shape(namespace, service, persist_seconds)
    return _by_uid([Operation(shape, uid) for uid in distinct(uids, "uids", keys.checked_uid)])


def get_linked_pods(namespace: str, uids: Iterable[str], service: str) -> Bulk[dict[int, list[str]]]:
    """Find the pods of many uids; links in their reconnect window are found too.

    Returns:
        podId -> its uids in the order asked for, each once; a uid without link is left out.

    Raises:
        InvalidArgument: an invalid argument.
    """
    namespace = keys.checked_namespace(namespace)
    service = keys.checked_service(service)
    head, tail = keys.link_head(namespace), keys.link_tail(service)
    names = distinct(uids, "uids", keys.checked_uid)

    def read(some: tuple[str, ...]) -> Operation[list[int | None]]:
        def parse(reply: Any) -> list[int | None]:
            return [
                None if pod is None else replies.pod(pod, of=f"{head}{uid}{tail}")
                for uid, pod in zip(some, reply, strict=True)
            ]

        their_keys = tuple([f"{head}{uid}{tail}" for uid in some])
        return command("get_linked_pods", "MGET", parse, keys=their_keys, namespace=namespace, service=service)

    def collect(results: Sequence[Any]) -> dict[int, list[str]]:
        uids_of: dict[int, list[str]] = {}
        pods: list[int | None] = []
        for result in results:
            if isinstance(result, PodLinkError):
                raise result
            pods += result
        for uid, pod in zip(names, pods, strict=True):
            if pod is not None:
                uids_of.setdefault(pod, []).append(uid)
        return uids_of

    return Bulk([read(names[start : start + _READS]) for start in range(0, len(names), _READS)], collect)


def remove_linked_pods(
    namespace: str, uids: Iterable[str], service: str, *, persist_seconds: int = 0
) -> Bulk[dict[str, bool]]:
    """Remove the links of many uids to a service, whatever pods they point at.

    Args:
        namespace: of the service.
        uids: any number of them.
        service: its name.
        persist_seconds: reconnect window in seconds, as in `remove_linked_pod`.

    Returns:
        uid -> whether there was a link.

    Raises:
        InvalidArgument: an invalid argument; nothing was sent.
        PartialFailure: some calls were answered, and some were not.
    """
    shape = links.remove_shape(namespace, service, persist_seconds)
    return _by_uid([Operation(shape, uid) for uid in distinct(uids, "uids", keys.checked_uid)])


def remove_linked_pods_with_id(
    namespace: str, pods: Mapping[str, int], service: str, *, persist_seconds: int = 0
) -> Bulk[dict[str, bool]]:
    """Remove those links of many uids that point at the given pods (compare-and-delete).

    Args:
        namespace: of the service.
        pods: uid -> podId its link must point at; any number of them.
        service: its name.
        persist_seconds: reconnect window in seconds, as in `remove_linked_pod`.

    Returns:
        uid -> whether it was removed.

    Raises:
        InvalidArgument: an invalid argument; nothing was sent.
        PartialFailure: some calls were answered, and some were not.
    """
    shape = links.remove_with_id_shape(namespace, service, persist_seconds)
    return _by_uid([Operation(shape, uid, (pod,)) for uid, pod in _checked(pods)])


def _checked(pods: Mapping[str, int], argument: str = "pods") -> Iterable[tuple[str, int]]:
    if not isinstance(pods, Mapping):
        raise InvalidArgument(f"{argument} must map uids to podIds, got {type(pods).__name__}", argument=argument)
    return [(keys.checked_uid(uid, argument), _checked_pod(pod, uid, argument)) for uid, pod in pods.items()]


def _checked_pod(pod: int, uid: str, argument: str) -> int:
    try:
        return keys.checked_pod_id(pod, argument)
    except InvalidArgument as error:
        raise InvalidArgument(f"{error}, of uid {uid!r}", argument=argument) from None


def _by_uid(operations: Sequence[Operation[T]]) -> Bulk[dict[str, T]]:
    def collect(results: Sequence[Any]) -> dict[str, T]:
        if any(isinstance(result, PodLinkError) for result in results):
            _raise_errors({operation.uid: result for operation, result in zip(operations, results, strict=True)})
        return {operation.uid: result for operation, result in zip(operations, results, strict=True)}

    return Bulk(operations, collect)


def _raise_errors(outcomes: Mapping[str, Any]) -> None:
    errors = {uid: result for uid, result in outcomes.items() if isinstance(result, PodLinkError)}
    first = next(iter(errors.values()))
    if len(errors) < len(outcomes):
        raise PartialFailure(
            f"{len(errors)} of {len(outcomes)} calls failed, the first with: {first}",
            results={uid: result for uid, result in outcomes.items() if uid not in errors},
            errors=errors,
        ) from first
    # All failed alike, as far as the caller is concerned: one of them speaks for all, the least certain one.
    raise next(
        (error for error in errors.values() if isinstance(error, RedisUnavailable) and error.maybe_applied), first
    )
