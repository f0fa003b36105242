"""The links of a uid: set, read, released. What each does in Redis, its script says."""

from collections.abc import Callable
from typing import Any, Final, TypeVar

from podlink.domain import keys
from podlink.store.operations import replies, scripts
from podlink.store.operations.base import PICK_WEIGHT, Operation, Shape, command, remembered
from podlink.store.operations.scripts import Script

T = TypeVar("T")

_LIST_WEIGHT: Final = 3
"""Each link that is listed is read, and a uid may have some."""

_TEMPORARY_WEIGHT: Final = 3
"""It is dated in three places."""

_NO_KEY: Final = -2
"""How PTTL says that there is no key."""


def set_linked_pod(
    namespace: str, uid: str, service: str, pod_id: int, *, persist_seconds: int = keys.PERMANENT
) -> Operation[int | None]:
    """Link a uid to a pod, whatever it was linked to before.

    Args:
        namespace: of the service.
        uid: any non-empty string without braces and control characters.
        service: its name.
        pod_id: ordinal of the pod, from 0.
        persist_seconds: -1 for a permanent link, else the seconds after which it expires.

    Returns:
        The podId linked before, or None.

    Raises:
        InvalidArgument: an invalid argument.
    """
    uid = keys.checked_uid(uid)
    pod_id = keys.checked_pod_id(pod_id)
    return Operation(set_shape(namespace, service, persist_seconds), uid, (pod_id,))


def try_set_linked_pod(
    namespace: str,
    uid: str,
    service: str,
    pod_id: int,
    *,
    persist_seconds: int = keys.PERMANENT,
    expected: int | None = None,
) -> Operation[tuple[bool, int]]:
    """Link a uid to a pod, unless it has a permanent link to another one.

    Args:
        namespace: of the service.
        uid: any non-empty string without braces and control characters.
        service: its name.
        pod_id: ordinal of the pod, from 0.
        persist_seconds: -1 for a permanent link, else the seconds after which it expires.
        expected: podId whose permanent link may be replaced all the same: one's own, that is to be moved.

    Returns:
        `(True, pod_id)` if it is set, else `(False, podId of the permanent link in the way)`.

    Raises:
        InvalidArgument: an invalid argument.
    """
    uid = keys.checked_uid(uid)
    pod_id = keys.checked_pod_id(pod_id)
    if expected is not None:
        expected = keys.checked_pod_id(expected, "expected")
    own = (pod_id, keys.checked_persist(persist_seconds), "" if expected is None else expected)
    return Operation(try_set_shape(namespace, service, persist_seconds), uid, own)


def set_linked_pod_if_absent(
    namespace: str, uid: str, service: str, pod_id: int, *, persist_seconds: int = keys.PERMANENT
) -> Operation[int]:
    """Link a uid to a pod if it has no link to the service.

    A link in its reconnect window is a link: it is returned, and expires when it would have.

    Args:
        namespace: of the service.
        uid: any non-empty string without braces and control characters.
        service: its name.
        pod_id: ordinal of the pod, from 0.
        persist_seconds: -1 for a permanent link, else the seconds after which it expires; of no effect on a link
            that exists.

    Returns:
        The podId now linked: ours, or the one that was there.

    Raises:
        InvalidArgument: an invalid argument.
    """
    uid = keys.checked_uid(uid)
    pod_id = keys.checked_pod_id(pod_id)
    return Operation(set_if_absent_shape(namespace, service, persist_seconds), uid, (pod_id,))


def compute_linked_pod_if_absent(
    namespace: str, uid: str, service: str, *, persist_seconds: int = keys.PERMANENT
) -> Operation[int | None]:
    """Find a uid's pod; if it has none, pick the least loaded `Ready` pod and link it, in one step.

    However many callers ask at once, one link is made and all get the same answer. Ties between equally loaded pods
    spread. A link in its reconnect window is a link: it is returned, and expires when it would have.

    Args:
        namespace: of the service.
        uid: any non-empty string without braces and control characters.
        service: its name.
        persist_seconds: -1 for a permanent link, else the seconds after which it expires; of no effect on a link
            that exists.

    Returns:
        The podId now linked, or None when there is no link and no `Ready` pod.

    Raises:
        InvalidArgument: an invalid argument.
    """
    uid = keys.checked_uid(uid)
    return Operation(compute_shape(namespace, service, persist_seconds), uid)


def get_linked_pod(namespace: str, uid: str, service: str) -> Operation[int | None]:
    """Find a uid's pod; a link in its reconnect window is found too.

    Returns:
        The podId, or None.

    Raises:
        InvalidArgument: an invalid argument.
    """
    uid = keys.checked_uid(uid)
    return Operation(_get_shape(namespace, service), uid)


def get_linked_pod_if_persist(namespace: str, uid: str, service: str) -> Operation[int | None]:
    """Find a uid's pod if the link is permanent.

    Returns:
        The podId; None where there is no link, or one that expires.

    Raises:
        InvalidArgument: an invalid argument.
    """
    uid = keys.checked_uid(uid)
    return Operation(_get_if_persist_shape(namespace, service), uid)


def remove_linked_pod(namespace: str, uid: str, service: str, *, persist_seconds: int = 0) -> Operation[bool]:
    """Remove a uid's link to a service, whatever pod it points at.

    Args:
        namespace: of the service.
        uid: any non-empty string without braces and control characters.
        service: its name.
        persist_seconds: reconnect window: the link can be found that many seconds more, but is listed no longer and
            loads its pod no longer. 0: it is gone at once.

    Returns:
        True if there was a link.

    Raises:
        InvalidArgument: an invalid argument.
    """
    uid = keys.checked_uid(uid)
    return Operation(remove_shape(namespace, service, persist_seconds), uid)


def remove_linked_pod_with_id(
    namespace: str, uid: str, service: str, pod_id: int, *, persist_seconds: int = 0
) -> Operation[bool]:
    """Remove a uid's link to a service only while it points at the given pod (compare-and-delete).

    Args:
        namespace: of the service.
        uid: any non-empty string without braces and control characters.
        service: its name.
        pod_id: ordinal of the pod the link must point at.
        persist_seconds: reconnect window in seconds, as in `remove_linked_pod`.

    Returns:
        True if it was removed; False where there is no link, or one to another pod.

    Raises:
        InvalidArgument: an invalid argument.
    """
    uid = keys.checked_uid(uid)
    pod_id = keys.checked_pod_id(pod_id)
    return Operation(remove_with_id_shape(namespace, service, persist_seconds), uid, (pod_id,))


def get_linked_services(namespace: str, uid: str) -> Operation[dict[str, int]]:
    """List every link of a uid; a link in its reconnect window is not listed.

    Returns:
        service -> podId.

    Raises:
        InvalidArgument: an invalid argument.
    """
    uid = keys.checked_uid(uid)
    return Operation(_services_shape(namespace), uid)


def read_link(namespace: str, uid: str, service: str) -> Operation[tuple[int | None, int]]:
    """Find a uid's pod as `get_linked_pod` does, and how long the link has still to live.

    Returns:
        The podId, or None; and milliseconds, -1 for a permanent link.

    Raises:
        InvalidArgument: an invalid argument.
    """
    uid = keys.checked_uid(uid)
    return Operation(_read_shape(namespace, service), uid)


def link_ttl(namespace: str, uid: str, service: str) -> Operation[int | None]:
    """Read how long a link has still to live.

    Returns:
        Milliseconds; -1 for a permanent link; None where there is no link.

    Raises:
        InvalidArgument: an invalid argument.
    """
    namespace, uid, service = _checked_link(namespace, uid, service)
    return command(
        "link_ttl",
        "PTTL",
        _ttl,
        keys=(keys.link_key(namespace, uid, service),),
        namespace=namespace,
        service=service,
        uid=uid,
    )


def listed_pod(namespace: str, uid: str, service: str) -> Operation[int | None]:
    """Read the pod under which the uid's hash lists a service, whether or not its string still lives.

    Returns:
        The podId, or None where the service is not listed.

    Raises:
        InvalidArgument: an invalid argument.
    """
    namespace, uid, service = _checked_link(namespace, uid, service)
    return command(
        "listed_pod",
        "HGET",
        replies.optional_pod,
        keys=(keys.link_hash_key(namespace, uid),),
        args=(service,),
        namespace=namespace,
        service=service,
        uid=uid,
    )


@remembered
def set_shape(namespace: str, service: str, persist_seconds: int) -> Shape[int | None]:
    """Of `set_linked_pod`; each call adds the podId."""
    persist_seconds = keys.checked_persist(persist_seconds)
    return _link_shape(
        "set_linked_pod",
        scripts.SET_LINK,
        replies.optional_pod,
        namespace,
        service,
        persist_seconds,
    )


@remembered
def try_set_shape(namespace: str, service: str, persist_seconds: int) -> Shape[tuple[bool, int]]:
    """Of `try_set_linked_pod`; each call adds podId, persist and expected ("" for none)."""
    persist_seconds = keys.checked_persist(persist_seconds)
    return _link_shape(
        "try_set_linked_pod",
        scripts.TRY_SET_LINK,
        replies.set_and_pod,
        namespace,
        service,
        persist_seconds,
        after=(),
    )


@remembered
def set_if_absent_shape(namespace: str, service: str, persist_seconds: int) -> Shape[int]:
    """Of `set_linked_pod_if_absent`; each call adds the podId."""
    persist_seconds = keys.checked_persist(persist_seconds)
    return _link_shape(
        "set_linked_pod_if_absent",
        scripts.SET_LINK_IF_ABSENT,
        replies.pod,
        namespace,
        service,
        persist_seconds,
    )


@remembered
def compute_shape(namespace: str, service: str, persist_seconds: int) -> Shape[int | None]:
    """Of `compute_linked_pod_if_absent`; a call adds nothing."""
    persist_seconds = keys.checked_persist(persist_seconds)
    return _link_shape(
        "compute_linked_pod_if_absent",
        scripts.COMPUTE_LINK_IF_ABSENT,
        replies.optional_pod,
        namespace,
        service,
        persist_seconds,
        further_keys=(keys.state_key(namespace, service),),
        weight=PICK_WEIGHT,
    )


@remembered
def remove_shape(namespace: str, service: str, persist_seconds: int) -> Shape[bool]:
    """Of `remove_linked_pod`; a call adds nothing."""
    persist_seconds = keys.checked_release_persist(persist_seconds)
    return _link_shape(
        "remove_linked_pod",
        scripts.REMOVE_LINK,
        replies.flag,
        namespace,
        service,
        persist_seconds,
    )


@remembered
def remove_with_id_shape(namespace: str, service: str, persist_seconds: int) -> Shape[bool]:
    """Of `remove_linked_pod_with_id`; each call adds the podId."""
    persist_seconds = keys.checked_release_persist(persist_seconds)
    return _link_shape(
        "remove_linked_pod_with_id",
        scripts.REMOVE_LINK_WITH_ID,
        replies.flag,
        namespace,
        service,
        persist_seconds,
    )


@remembered
def _get_shape(namespace: str, service: str) -> Shape[int | None]:
    namespace = keys.checked_namespace(namespace)
    service = keys.checked_service(service)
    return Shape(
        "get_linked_pod",
        replies.optional_pod,
        command="GET",
        head=keys.link_head(namespace),
        tails=(keys.link_tail(service),),
        namespace=namespace,
        service=service,
    )


@remembered
def _read_shape(namespace: str, service: str) -> Shape[tuple[int | None, int]]:
    namespace = keys.checked_namespace(namespace)
    service = keys.checked_service(service)
    return Shape(
        "get_linked_pod",
        _pod_and_ttl,
        script=scripts.READ_LINK,
        head=keys.link_head(namespace),
        tails=(keys.link_tail(service),),
        namespace=namespace,
        service=service,
    )


@remembered
def _get_if_persist_shape(namespace: str, service: str) -> Shape[int | None]:
    namespace = keys.checked_namespace(namespace)
    service = keys.checked_service(service)
    return Shape(
        "get_linked_pod_if_persist",
        replies.optional_pod,
        script=scripts.GET_LINK_IF_PERSIST,
        head=keys.link_head(namespace),
        tails=(keys.link_tail(service), keys.LINK_HASH_TAIL),
        namespace=namespace,
        service=service,
    )


@remembered
def _services_shape(namespace: str) -> Shape[dict[str, int]]:
    namespace = keys.checked_namespace(namespace)
    return Shape(
        "get_linked_services",
        replies.pods_by_service,
        script=scripts.GET_LINK_SERVICE,
        head=keys.link_head(namespace),
        tails=(keys.LINK_HASH_TAIL,),
        namespace=namespace,
        weight=_LIST_WEIGHT,
    )


def _link_shape(
    name: str,
    script: Script,
    parse: Callable[[Any], T],
    namespace: str,
    service: str,
    persist_seconds: int,
    *,
    after: tuple[int, ...] | None = None,
    further_keys: tuple[str, ...] = (),
    weight: int | None = None,
) -> Shape[T]:
    """Without `after`, the last argument is persist; without `weight`, it follows from that."""
    namespace = keys.checked_namespace(namespace)
    service = keys.checked_service(service)
    return Shape(
        name,
        parse,
        script=script,
        head=keys.link_head(namespace),
        tails=(keys.link_tail(service), keys.LINK_HASH_TAIL),
        keys=(keys.load_key(namespace, service), keys.expiry_key(namespace, service), *further_keys),
        before=(service,),
        after=(persist_seconds,) if after is None else after,
        namespace=namespace,
        service=service,
        weight=weight or (_TEMPORARY_WEIGHT if persist_seconds > 0 else 1),
    )


def _checked_link(namespace: str, uid: str, service: str) -> tuple[str, str, str]:
    return keys.checked_namespace(namespace), keys.checked_uid(uid), keys.checked_service(service)


def _ttl(reply: Any) -> int | None:
    milliseconds = int(reply)
    return None if milliseconds == _NO_KEY else milliseconds


def _pod_and_ttl(reply: Any) -> tuple[int | None, int]:
    pod, milliseconds = reply
    return replies.optional_pod(pod), int(milliseconds)
