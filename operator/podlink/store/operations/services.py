"""The states and loads of services and workloads."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from podlink.domain import keys
from podlink.domain.errors import InvalidArgument
from podlink.store.operations import replies, scripts
from podlink.store.operations.base import PICK_WEIGHT, Operation, Shape, command, remembered
from podlink.store.operations.scripts import Script

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Service:
    """States and loads of a service, read in one step.

    Attributes:
        states: podId -> state.
        loads: podId -> number of links. Every pod in `states` is in it, with 0 where it has none; so are pods that are
            gone but still linked.
    """

    states: Mapping[int, str]
    loads: Mapping[int, int]


def set_service_state(
    namespace: str, service: str, pod_id: int, state: str, *, version: str | int | None = None
) -> Operation[bool]:
    """Write the state of one pod; `state=""` removes the pod.

    Args:
        namespace: of the service.
        service: its name.
        pod_id: ordinal of the pod, from 0.
        state: for example `Ready`, the one state in which a pod gets new links.
        version: Kubernetes resourceVersion (decimal digits) the state comes from. A write older than the stored version
            is refused; an equal one is applied. None writes whatever is stored, and forgets the stored version.

    Returns:
        True if applied, False if a newer version is stored.

    Raises:
        InvalidArgument: an invalid argument.
    """
    pod_id = keys.checked_pod_id(pod_id)
    state = keys.checked_text(state, "state")
    own = (pod_id, state, keys.checked_version(version))
    return Operation(_set_state_shape(namespace, service), own=own)


def get_service_state(namespace: str, service: str) -> Operation[dict[int, str]]:
    """Read the states of all pods of a service.

    Returns:
        podId -> state; empty for a service nobody knows.

    Raises:
        InvalidArgument: an invalid argument.
    """
    return Operation(_get_state_shape(namespace, service))


def get_service(namespace: str, service: str) -> Operation[Service]:
    """Read states and loads of a service in one consistent step.

    Temporary links that have ended are taken off the loads first (at most 1000 a call).

    Returns:
        `Service(states, loads)`; both empty for a service nobody knows.

    Raises:
        InvalidArgument: an invalid argument.
    """
    return Operation(_get_service_shape(namespace, service))


def set_workload_state(
    namespace: str, service: str, state: str, *, version: str | int | None = None
) -> Operation[bool]:
    """Write the state of a service's workload; `state=""` removes it.

    Args:
        namespace: of the service.
        service: its name.
        state: for example `Available`.
        version: Kubernetes resourceVersion the state comes from; fences older writers as in `set_service_state`.

    Returns:
        True if applied, False if a newer version is stored.

    Raises:
        InvalidArgument: an invalid argument.
    """
    state = keys.checked_text(state, "state")
    return Operation(_set_workload_shape(namespace, service), own=("", state, keys.checked_version(version)))


def get_workload_state(namespace: str, service: str) -> Operation[str | None]:
    """Read the state of a service's workload.

    Returns:
        The state, or None where there is none.

    Raises:
        InvalidArgument: an invalid argument.
    """
    namespace = keys.checked_namespace(namespace)
    service = keys.checked_service(service)
    return command(
        "get_workload_state",
        "GET",
        replies.optional_text,
        keys=(keys.workload_key(namespace, service),),
        namespace=namespace,
        service=service,
    )


def get_workload_states(namespace: str, services: Iterable[str]) -> Operation[dict[str, str]]:
    """Read the states of many workloads of one namespace in one round trip.

    Returns:
        service -> state, in the order asked for; a service without state is left out.

    Raises:
        InvalidArgument: an invalid argument.
    """
    namespace = keys.checked_namespace(namespace)
    names = distinct(services, "services", keys.checked_service)

    def parse(reply: Any) -> dict[str, str]:
        return {name: replies.text(state) for name, state in zip(names, reply, strict=True) if state is not None}

    return command(
        "get_workload_states",
        "MGET" if names else "",
        parse,
        keys=tuple(keys.workload_key(namespace, name) for name in names),
        namespace=namespace,
    )


def get_state_versions(namespace: str, service: str) -> Operation[dict[int, str]]:
    """Read the versions that fence the states of a service; removed pods leave theirs behind for a while.

    Returns:
        podId -> resourceVersion.

    Raises:
        InvalidArgument: an invalid argument.
    """
    namespace = keys.checked_namespace(namespace)
    service = keys.checked_service(service)
    return command(
        "get_state_versions",
        "HGETALL",
        replies.texts_by_pod,
        keys=(keys.version_key(namespace, service),),
        namespace=namespace,
        service=service,
    )


def get_workload_version(namespace: str, service: str) -> Operation[str | None]:
    """Read the version that fences the state of a workload.

    Returns:
        The resourceVersion, or None.

    Raises:
        InvalidArgument: an invalid argument.
    """
    namespace = keys.checked_namespace(namespace)
    service = keys.checked_service(service)
    return command(
        "get_workload_version",
        "GET",
        replies.optional_text,
        keys=(keys.workload_version_key(namespace, service),),
        namespace=namespace,
        service=service,
    )


def reserve_service_pod(namespace: str, service: str) -> Operation[int | None]:
    """Pick the least loaded `Ready` pod and reserve one unit of its load.

    No link holds that unit: whoever reserves gives it back with `release_service_pod`, or makes a link of it.

    Returns:
        The podId, or None where no pod is `Ready`.

    Raises:
        InvalidArgument: an invalid argument.
    """
    return Operation(_reserve_shape(namespace, service))


def release_service_pod(namespace: str, service: str, pod_id: int) -> Operation[bool]:
    """Give back one unit of load reserved by `reserve_service_pod`.

    Returns:
        True; False if the pod had no load to give back.

    Raises:
        InvalidArgument: an invalid argument.
    """
    pod_id = keys.checked_pod_id(pod_id)
    return Operation(_release_shape(namespace, service), own=(pod_id,))


def book_load(
    namespace: str,
    service: str,
    link: str,
    *,
    given: str,
    temporary: bool,
    taken: str,
    ends: str,
) -> Operation[None]:
    """Book what one link gave back and took, where the link is in another hash slot than its service's load.

    Args:
        namespace: of the service.
        service: its name.
        link: key of the link.
        given: podId that gives a unit back; "" for none.
        temporary: whether that unit was a temporary link's.
        taken: podId that takes a unit; "" for none.
        ends: Unix milliseconds at which its link ends; "" for never.
    """
    return Operation(_book_shape(namespace, service), own=(given, link, int(temporary), taken, ends))


def distinct(values: Iterable[str], argument: str, checked: Callable[[str, str], str]) -> tuple[str, ...]:
    """Check a list of names; each of them once, in order.

    Raises:
        InvalidArgument: it is no list, or a name in it is refused.
    """
    # A str is an iterable of str as well, and asking for its letters one by one is never what was meant.
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise InvalidArgument(f"{argument} must be a list of str, got {type(values).__name__}", argument=argument)
    return tuple(dict.fromkeys(checked(name, argument) for name in values))


@remembered
def _set_state_shape(namespace: str, service: str) -> Shape[bool]:
    namespace = keys.checked_namespace(namespace)
    service = keys.checked_service(service)
    return Shape(
        "set_service_state",
        replies.flag,
        script=scripts.SET_STATE,
        keys=(keys.state_key(namespace, service), keys.version_key(namespace, service)),
        namespace=namespace,
        service=service,
    )


@remembered
def _set_workload_shape(namespace: str, service: str) -> Shape[bool]:
    namespace = keys.checked_namespace(namespace)
    service = keys.checked_service(service)
    return Shape(
        "set_workload_state",
        replies.flag,
        script=scripts.SET_STATE,
        keys=(keys.workload_key(namespace, service), keys.workload_version_key(namespace, service)),
        namespace=namespace,
        service=service,
    )


@remembered
def _get_state_shape(namespace: str, service: str) -> Shape[dict[int, str]]:
    namespace = keys.checked_namespace(namespace)
    service = keys.checked_service(service)
    return Shape(
        "get_service_state",
        replies.texts_by_pod,
        command="HGETALL",
        keys=(keys.state_key(namespace, service),),
        namespace=namespace,
        service=service,
    )


@remembered
def _get_service_shape(namespace: str, service: str) -> Shape[Service]:
    return _service_shape("get_service", scripts.GET_SERVICE, _service, namespace, service)


@remembered
def _reserve_shape(namespace: str, service: str) -> Shape[int | None]:
    return _service_shape("reserve_service_pod", scripts.GET_SERVICE_POD, replies.optional_pod, namespace, service)


@remembered
def _release_shape(namespace: str, service: str) -> Shape[bool]:
    return _service_shape("release_service_pod", scripts.GET_SERVICE_POD, _is_pod, namespace, service)


@remembered
def _book_shape(namespace: str, service: str) -> Shape[None]:
    return _service_shape("book_load", scripts.GET_SERVICE_POD, replies.nothing, namespace, service)


def _service_shape(name: str, script: Script, parse: Callable[[Any], T], namespace: str, service: str) -> Shape[T]:
    namespace = keys.checked_namespace(namespace)
    service = keys.checked_service(service)
    return Shape(
        name,
        parse,
        script=script,
        keys=(
            keys.state_key(namespace, service),
            keys.load_key(namespace, service),
            keys.expiry_key(namespace, service),
        ),
        namespace=namespace,
        service=service,
        weight=PICK_WEIGHT,
    )


def _is_pod(reply: Any) -> bool:
    return replies.optional_pod(reply) is not None


def _service(reply: Any) -> Service:
    states, loads = map(replies.pairs, reply)
    states_by_pod = {replies.pod(pod): replies.text(state) for pod, state in states}
    links = {replies.pod(pod): int(number) for pod, number in loads}
    return Service(states_by_pod, dict.fromkeys(states_by_pod, 0) | links)
