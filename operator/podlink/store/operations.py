"""Every operation on the link map as data: script or command, keys, arguments, and how to read the reply.

A builder checks its arguments and says what to send; it does no I/O. Executors run what it returns, one at a time or
many in a pipeline. A new operation is one builder here and one line in each of the executors.

Running an operation raises `RedisUnavailable` or `ScriptError`; building one raises `InvalidArgument`, which names the
argument and what to pass instead. Where a docstring says "an invalid argument", that is what is meant.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from podlink.domain import keys
from podlink.domain.errors import InvalidArgument
from podlink.store import scripts
from podlink.store.scripts import Script

T_co = TypeVar("T_co", covariant=True)

_NONE_ON_THE_WIRE: Final = -1


@dataclass(frozen=True, slots=True)
class Operation(Generic[T_co]):
    """One request to Redis and the reading of its reply.

    Attributes:
        name: of the executor method (or builder) it comes from; labels metrics and logs.
        keys: Redis keys, in the order of the script's KEYS.
        parse: turns the raw reply (bytes or str, RESP2 or RESP3) into the result; raises ValueError or TypeError if the
            reply is not what it must be.
        script: the Lua script to run, or None for a plain command.
        command: the plain command, or None for a script. With neither there is nothing to ask: no I/O, an empty reply.
        args: further arguments, in the order of the script's ARGV.
        namespace: for logs; None where it does not apply, as with the next two.
        service: for logs.
        uid: for logs.
    """

    name: str
    keys: tuple[str, ...]
    parse: Callable[[Any], T_co]
    script: Script | None = None
    command: str | None = None
    args: tuple[str | int, ...] = ()
    namespace: str | None = None
    service: str | None = None
    uid: str | None = None

    def request(self, *, with_text: bool = False) -> tuple[str | int, ...]:
        """The words to send; empty when there is nothing to ask.

        Args:
            with_text: name the script by its text, which the server then knows, instead of by its digest.
        """
        if self.script:
            how = ("EVAL", self.script.text) if with_text else ("EVALSHA", self.script.sha1)
            return (*how, len(self.keys), *self.keys, *self.args)
        return (*self.command.split(), *self.keys, *self.args) if self.command else ()

    @property
    def target(self) -> str:
        """Name of the script, or of the command where there is none."""
        return self.script.name if self.script else self.command or ""


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
    keys.check_namespace(namespace)
    keys.check_service(service)
    keys.check_pod_id(pod_id)
    keys.check_text(state, "state")
    return Operation(
        name="set_service_state",
        script=scripts.SET_STATE,
        keys=(keys.state_key(namespace, service), keys.version_key(namespace, service)),
        args=(pod_id, state, keys.checked_version(version)),
        parse=_flag,
        namespace=namespace,
        service=service,
    )


def get_service_state(namespace: str, service: str) -> Operation[dict[int, str]]:
    """Read the states of all pods of a service.

    Returns:
        podId -> state; empty for a service nobody knows.

    Raises:
        InvalidArgument: an invalid argument.
    """
    keys.check_namespace(namespace)
    keys.check_service(service)
    return Operation(
        name="get_service_state",
        command="HGETALL",
        keys=(keys.state_key(namespace, service),),
        parse=_texts_by_pod,
        namespace=namespace,
        service=service,
    )


def get_service(namespace: str, service: str) -> Operation[Service]:
    """Read states and loads of a service in one consistent step.

    Temporary links that have ended are taken off the loads first (at most 1000 a call).

    Returns:
        `Service(states, loads)`; both empty for a service nobody knows.

    Raises:
        InvalidArgument: an invalid argument.
    """
    keys.check_namespace(namespace)
    keys.check_service(service)
    return Operation(
        name="get_service",
        script=scripts.GET_SERVICE,
        keys=_service_keys(namespace, service),
        parse=_service,
        namespace=namespace,
        service=service,
    )


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
    keys.check_namespace(namespace)
    keys.check_service(service)
    keys.check_text(state, "state")
    return Operation(
        name="set_workload_state",
        script=scripts.SET_STATE,
        keys=(keys.workload_key(namespace, service), keys.workload_version_key(namespace, service)),
        args=("", state, keys.checked_version(version)),
        parse=_flag,
        namespace=namespace,
        service=service,
    )


def get_workload_state(namespace: str, service: str) -> Operation[str | None]:
    """Read the state of a service's workload.

    Returns:
        The state, or None where there is none.

    Raises:
        InvalidArgument: an invalid argument.
    """
    keys.check_namespace(namespace)
    keys.check_service(service)
    return Operation(
        name="get_workload_state",
        command="GET",
        keys=(keys.workload_key(namespace, service),),
        parse=_optional_text,
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
    keys.check_namespace(namespace)
    names = _distinct(services, "services", keys.check_service)

    def parse(reply: Any) -> dict[str, str]:
        return {name: _text(state) for name, state in zip(names, reply, strict=True) if state is not None}

    return Operation(
        name="get_workload_states",
        command="MGET" if names else None,
        keys=tuple(keys.workload_key(namespace, name) for name in names),
        parse=parse,
        namespace=namespace,
    )


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
    keys.check_pod_id(pod_id)
    keys.check_persist(persist_seconds)
    return Operation(
        name="set_linked_pod",
        script=scripts.SET_LINK,
        keys=_link_keys(namespace, uid, service),
        args=(service, pod_id, persist_seconds),
        parse=_optional_pod,
        namespace=namespace,
        service=service,
        uid=uid,
    )


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
    keys.check_pod_id(pod_id)
    keys.check_persist(persist_seconds)
    if expected is not None:
        keys.check_pod_id(expected, "expected")
    return Operation(
        name="try_set_linked_pod",
        script=scripts.TRY_SET_LINK,
        keys=_link_keys(namespace, uid, service),
        args=(service, pod_id, persist_seconds, "" if expected is None else expected),
        parse=_set_and_pod,
        namespace=namespace,
        service=service,
        uid=uid,
    )


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
    keys.check_pod_id(pod_id)
    keys.check_persist(persist_seconds)
    return Operation(
        name="set_linked_pod_if_absent",
        script=scripts.SET_LINK_IF_ABSENT,
        keys=_link_keys(namespace, uid, service),
        args=(service, pod_id, persist_seconds),
        parse=_pod,
        namespace=namespace,
        service=service,
        uid=uid,
    )


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
    keys.check_persist(persist_seconds)
    return Operation(
        name="compute_linked_pod_if_absent",
        script=scripts.COMPUTE_LINK_IF_ABSENT,
        keys=(*_link_keys(namespace, uid, service), keys.state_key(namespace, service)),
        args=(service, persist_seconds),
        parse=_optional_pod,
        namespace=namespace,
        service=service,
        uid=uid,
    )


def get_linked_pod(namespace: str, uid: str, service: str) -> Operation[int | None]:
    """Find a uid's pod; a link in its reconnect window is found too.

    Returns:
        The podId, or None.

    Raises:
        InvalidArgument: an invalid argument.
    """
    _check_link(namespace, uid, service)
    return Operation(
        name="get_linked_pod",
        command="GET",
        keys=(keys.link_key(namespace, uid, service),),
        parse=_optional_pod,
        namespace=namespace,
        service=service,
        uid=uid,
    )


def get_linked_pod_if_persist(namespace: str, uid: str, service: str) -> Operation[int | None]:
    """Find a uid's pod if the link is permanent.

    Returns:
        The podId; None where there is no link, or one that expires.

    Raises:
        InvalidArgument: an invalid argument.
    """
    _check_link(namespace, uid, service)
    return Operation(
        name="get_linked_pod_if_persist",
        script=scripts.GET_LINK_IF_PERSIST,
        keys=(keys.link_key(namespace, uid, service), keys.link_hash_key(namespace, uid)),
        parse=_optional_pod,
        namespace=namespace,
        service=service,
        uid=uid,
    )


def get_linked_pods(namespace: str, uids: Iterable[str], service: str) -> Operation[dict[int, list[str]]]:
    """Find the pods of many uids in one round trip.

    Returns:
        podId -> its uids in the order asked for, each once; a uid without link is left out.

    Raises:
        InvalidArgument: an invalid argument.
    """
    keys.check_namespace(namespace)
    keys.check_service(service)
    names = _distinct(uids, "uids", keys.check_uid)

    def parse(reply: Any) -> dict[int, list[str]]:
        uids_of: dict[int, list[str]] = {}
        for name, pod in zip(names, reply, strict=True):
            if pod is not None:
                uids_of.setdefault(_pod(pod, of=keys.link_key(namespace, name, service)), []).append(name)
        return uids_of

    return Operation(
        name="get_linked_pods",
        command="MGET" if names else None,
        keys=tuple(keys.link_key(namespace, name, service) for name in names),
        parse=parse,
        namespace=namespace,
        service=service,
    )


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
    keys.check_release_persist(persist_seconds)
    return Operation(
        name="remove_linked_pod",
        script=scripts.REMOVE_LINK,
        keys=_link_keys(namespace, uid, service),
        args=(service, persist_seconds),
        parse=_flag,
        namespace=namespace,
        service=service,
        uid=uid,
    )


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
    keys.check_pod_id(pod_id)
    keys.check_release_persist(persist_seconds)
    return Operation(
        name="remove_linked_pod_with_id",
        script=scripts.REMOVE_LINK_WITH_ID,
        keys=_link_keys(namespace, uid, service),
        args=(service, pod_id, persist_seconds),
        parse=_flag,
        namespace=namespace,
        service=service,
        uid=uid,
    )


def get_linked_services(namespace: str, uid: str) -> Operation[dict[str, int]]:
    """List every link of a uid; a link in its reconnect window is not listed.

    Returns:
        service -> podId.

    Raises:
        InvalidArgument: an invalid argument.
    """
    keys.check_namespace(namespace)
    keys.check_uid(uid)
    return Operation(
        name="get_linked_services",
        script=scripts.GET_LINK_SERVICE,
        keys=(keys.link_hash_key(namespace, uid),),
        parse=_pods_by_service,
        namespace=namespace,
        uid=uid,
    )


def link_ttl(namespace: str, uid: str, service: str) -> Operation[int | None]:
    """Read how long a link has still to live.

    Returns:
        Milliseconds; -1 for a permanent link; None where there is no link.

    Raises:
        InvalidArgument: an invalid argument.
    """
    _check_link(namespace, uid, service)
    return Operation(
        name="link_ttl",
        command="PTTL",
        keys=(keys.link_key(namespace, uid, service),),
        parse=_ttl,
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
    _check_link(namespace, uid, service)
    return Operation(
        name="listed_pod",
        command="HGET",
        keys=(keys.link_hash_key(namespace, uid),),
        args=(service,),
        parse=_optional_pod,
        namespace=namespace,
        service=service,
        uid=uid,
    )


def get_state_versions(namespace: str, service: str) -> Operation[dict[int, str]]:
    """Read the versions that fence the states of a service; removed pods leave theirs behind for a while.

    Returns:
        podId -> resourceVersion.

    Raises:
        InvalidArgument: an invalid argument.
    """
    keys.check_namespace(namespace)
    keys.check_service(service)
    return Operation(
        name="get_state_versions",
        command="HGETALL",
        keys=(keys.version_key(namespace, service),),
        parse=_texts_by_pod,
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
    keys.check_namespace(namespace)
    keys.check_service(service)
    return Operation(
        name="get_workload_version",
        command="GET",
        keys=(keys.workload_version_key(namespace, service),),
        parse=_optional_text,
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
    keys.check_namespace(namespace)
    keys.check_service(service)
    return Operation(
        name="reserve_service_pod",
        script=scripts.GET_SERVICE_POD,
        keys=_service_keys(namespace, service),
        parse=_optional_pod,
        namespace=namespace,
        service=service,
    )


def release_service_pod(namespace: str, service: str, pod_id: int) -> Operation[bool]:
    """Give back one unit of load reserved by `reserve_service_pod`.

    Returns:
        True; False if the pod had no load to give back.

    Raises:
        InvalidArgument: an invalid argument.
    """
    keys.check_namespace(namespace)
    keys.check_service(service)
    keys.check_pod_id(pod_id)
    return Operation(
        name="release_service_pod",
        script=scripts.GET_SERVICE_POD,
        keys=_service_keys(namespace, service),
        args=(pod_id,),
        parse=_is_pod,
        namespace=namespace,
        service=service,
    )


def ping() -> Operation[bool]:
    """Ask whether the server answers; True if it does."""
    return Operation(name="ping", command="PING", keys=(), parse=lambda reply: _text(reply) == "PONG")


def get_marker(name: str) -> Operation[str | None]:
    """Read a value the operator keeps in Redis, for example to notice that the data has been lost.

    Returns:
        The value, or None.

    Raises:
        InvalidArgument: an invalid argument.
    """
    keys.check_service(name, "name")
    return Operation(name="get_marker", command="GET", keys=(keys.marker_key(name),), parse=_optional_text)


def set_marker(name: str, value: str) -> Operation[None]:
    """Write a value the operator keeps in Redis.

    Raises:
        InvalidArgument: an invalid argument.
    """
    keys.check_service(name, "name")
    keys.check_text(value, "value")
    return Operation(name="set_marker", command="SET", keys=(keys.marker_key(name),), args=(value,), parse=_nothing)


def run_id() -> Operation[str]:
    """Read the random id a Redis server gives itself at every start.

    Returns:
        40 hexadecimal digits.
    """
    return Operation(name="run_id", command="INFO", keys=(), args=("server",), parse=_run_id)


def field_expiry_supported() -> Operation[bool]:
    """Ask whether the server can expire single fields of a hash (Redis from 7.4, Valkey from 9.0)."""
    return Operation(
        name="field_expiry_supported",
        command="COMMAND INFO",
        keys=(),
        args=("HPEXPIREAT",),
        parse=lambda reply: bool(reply[0]),
    )


def scan(cursor: int, pattern: str, count: int) -> Operation[tuple[int, list[str]]]:
    """Take one slice of the keyspace.

    Args:
        cursor: 0 to start, then the one returned.
        pattern: glob the keys must match.
        count: about how many keys the server looks at.

    Returns:
        The next cursor, 0 at the end, and the matching keys (a key may come twice; one that is no UTF-8 is not ours).
    """
    return Operation(
        name="scan", command="SCAN", keys=(), args=(cursor, "MATCH", pattern, "COUNT", count), parse=_slice
    )


def _check_link(namespace: str, uid: str, service: str) -> None:
    keys.check_namespace(namespace)
    keys.check_uid(uid)
    keys.check_service(service)


def _service_keys(namespace: str, service: str) -> tuple[str, ...]:
    return (
        keys.state_key(namespace, service),
        keys.load_key(namespace, service),
        keys.expiry_key(namespace, service),
    )


def _link_keys(namespace: str, uid: str, service: str) -> tuple[str, ...]:
    _check_link(namespace, uid, service)
    return (
        keys.link_key(namespace, uid, service),
        keys.link_hash_key(namespace, uid),
        keys.load_key(namespace, service),
        keys.expiry_key(namespace, service),
    )


def _distinct(values: Iterable[str], argument: str, check: Callable[[str, str], None]) -> tuple[str, ...]:
    # A str is an iterable of str as well, and asking for its letters one by one is never what was meant.
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise InvalidArgument(f"{argument} must be a list of str, got {type(values).__name__}", argument=argument)
    names = tuple(values)
    for name in names:
        check(name, argument)
    return tuple(dict.fromkeys(names))


def _text(reply: Any) -> str:
    return reply.decode() if isinstance(reply, bytes) else str(reply)


def _optional_text(reply: Any) -> str | None:
    return None if reply is None else _text(reply)


def _nothing(_reply: Any) -> None:
    return None


def _flag(reply: Any) -> bool:
    return int(reply) == 1


def _pod(reply: Any, *, of: str = "") -> int:
    digits = reply if isinstance(reply, bytes) else str(reply)
    if not digits.isdigit():
        raise ValueError(f"{_shown(reply)} is no podId{f' (at {of})' if of else ''}")
    return int(digits)


def _optional_pod(reply: Any) -> int | None:
    if reply is None or reply in (_NONE_ON_THE_WIRE, b"-1", "-1"):
        return None
    return _pod(reply)


def _is_pod(reply: Any) -> bool:
    return _optional_pod(reply) is not None


def _set_and_pod(reply: Any) -> tuple[bool, int]:
    pod, is_set = reply
    return _flag(is_set), _pod(pod)


def _ttl(reply: Any) -> int | None:
    milliseconds = int(reply)
    return None if milliseconds == -2 else milliseconds  # noqa: PLR2004 - how PTTL says that there is no key


def _pairs(reply: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(reply, dict):
        return reply.items()
    return zip(reply[::2], reply[1::2], strict=True)


def _texts_by_pod(reply: Any) -> dict[int, str]:
    return {_pod(pod): _text(value) for pod, value in _pairs(reply)}


def _pods_by_service(reply: Any) -> dict[str, int]:
    return {_text(service): _pod(pod) for service, pod in _pairs(reply)}


def _service(reply: Any) -> Service:
    states, loads = reply
    states_by_pod = _texts_by_pod(states)
    return Service(states_by_pod, dict.fromkeys(states_by_pod, 0) | {_pod(pod): int(n) for pod, n in _pairs(loads)})


def _run_id(reply: Any) -> str:
    for line in _text(reply).splitlines():
        name, _, value = line.partition(":")
        if name == "run_id":
            return value
    raise ValueError("INFO server has no run_id")


def _slice(reply: Any) -> tuple[int, list[str]]:
    cursor, found = reply
    return int(cursor), [key for key in map(_utf8, found) if key is not None]


def _utf8(key: Any) -> str | None:
    try:
        return _text(key)
    except UnicodeDecodeError:
        return None


def _shown(reply: Any) -> str:
    return repr(reply.decode(errors="backslashreplace") if isinstance(reply, bytes) else reply)
