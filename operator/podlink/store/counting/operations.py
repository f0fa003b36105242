"""What the recount asks of Redis that nobody else does: four small scripts and two commands.

The scripts are texts here and no files under `lua/`: those are the contract with clients in other languages, and these
are nobody's business but ours. Each touches the keys of one hash slot, a uid's or a service's, so all of them work on
Redis Cluster. They compare and write in one step. WATCH with MULTI would do that too, but a watch belongs to a
connection, and those of the executor are shared: a transaction would need one of its own, and three round trips, in
which the load of a busy pod has changed again.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple, TypeVar

from podlink.domain import keys
from podlink.domain.keys import ServiceName, Uid
from podlink.store.counting.tally import Bounds
from podlink.store.operations import Operation, Shape, replies, scripts
from podlink.store.operations.base import command
from podlink.store.operations.scripts import Script

T = TypeVar("T")

# "07" is another field of the load hash than "7".
_POD_ID: Final = re.compile(r"0|[1-9][0-9]{0,18}").fullmatch

PERMANENT: Final = -1
"""`Link.ends` of a link that does not end."""


class Link(NamedTuple):
    """A link that its uid's hash lists and whose string lives.

    Attributes:
        namespace: of the service and the uid.
        uid: the one that is linked.
        service: the one it is linked to.
        pod: its ordinal.
        ends: Unix time in milliseconds, or PERMANENT.
    """

    namespace: str
    uid: str
    service: str
    pod: int
    ends: int


class Loads(NamedTuple):
    """Loads of a service at one moment.

    Attributes:
        due: temporary links that have ended but are still counted.
        by_pod: podId -> load; a pod without load is left out.
    """

    due: int
    by_pod: dict[int, int]


class Member(NamedTuple):
    """A member of a service's expiry set: the unit of load that a temporary link holds.

    Attributes:
        namespace: of the service.
        uid: whose link it is.
        service: the service.
        pod: whose load the unit is part of.
    """

    namespace: str
    uid: str
    service: str
    pod: int

    def __str__(self) -> str:
        """As the scripts write it."""
        return f"{self.pod} {keys.link_key(self.namespace, self.uid, self.service)}"


_READ_LINKS: Final = Script(
    "recountReadLinks",
    ("links",),
    (),
    "svc, podId, Unix ms at which the link ends or -1, svc, ... in one flat list.",
    """\
-- As statefulGetLinkService, which deletes the same fields, but with the end of each link.
local links, found = KEYS[1], {}
for _, svc in ipairs(redis.call('HKEYS', links)) do
  local link = links .. svc
  local pod = redis.call('GET', link)
  if pod then
    found[#found + 1] = svc
    found[#found + 1] = pod
    found[#found + 1] = redis.call('PEXPIRETIME', link)
  else
    redis.call('HDEL', links, svc)
  end
end
return found
""",
    writes=False,
    finds_keys=True,
)
_READ_LOADS: Final = Script(
    "recountReadLoads",
    ("load", "expiry"),
    (),
    "{temporary links that have ended and are still counted, {podId, load, podId, load, ...}}.",
    """\
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
return {redis.call('ZCOUNT', KEYS[2], '-inf', now), redis.call('HGETALL', KEYS[1])}
""",
    writes=False,
)
_MEND_LOAD: Final = Script(
    "recountMendLoad",
    ("load",),
    ("podId", "always", "ever", "least", "most"),
    "{the load that was found, the load that is there now}.",
    """\
-- Tally.lacks, with what the load is at this very moment as one more reading.
local load, pod = KEYS[1], ARGV[1]
local always, ever, least, most = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local found = tonumber(redis.call('HGET', load, pod) or 0)
local lacks = math.max(0, always - math.max(most, found)) - math.max(0, math.min(least, found) - ever)
if lacks ~= 0 and redis.call('HINCRBY', load, pod, lacks) <= 0 then
  redis.call('HDEL', load, pod)
end
return {found, found + lacks}
""",
)
_MEND_MEMBER: Final = Script(
    "recountMendMember",
    ("load", "expiry"),
    ("member", "podId", "found", "right", "unit"),
    "1, or 0 when the member is no longer what was found.",
    """\
-- found and right are scores, or empty where there is, or must be, no such member; unit goes onto the load.
local load, expiry, member, pod, unit = KEYS[1], KEYS[2], ARGV[1], ARGV[2], tonumber(ARGV[5])
local score = redis.call('ZSCORE', expiry, member)
if (score and tonumber(score) or nil) ~= tonumber(ARGV[3]) then
  return 0
end
if ARGV[4] == '' then
  redis.call('ZREM', expiry, member)
else
  redis.call('ZADD', expiry, ARGV[4], member)
end
if unit ~= 0 and redis.call('HINCRBY', load, pod, unit) <= 0 then
  redis.call('HDEL', load, pod)
end
return 1
""",
)


def read_links(uid: Uid) -> Operation[list[Link]]:
    """List the links of a uid that count, with their ends; prunes the fields whose string is gone."""

    def parse(reply: Any) -> list[Link]:
        rows = zip(reply[::3], reply[1::3], reply[2::3], strict=True)
        return [
            Link(uid.namespace, uid.uid, name, pod, int(ends))
            for service, value, ends in rows
            if (name := _service_name(uid.namespace, service)) is not None and (pod := _pod_id(value)) is not None
        ]

    return _script("read_links", _READ_LINKS, (keys.link_hash_key(*uid),), parse, namespace=uid.namespace, uid=uid.uid)


def settle(service: ServiceName) -> Operation[None]:
    """Take temporary links that have ended off the loads, at most a thousand, as every reader of loads does."""
    service_keys = (keys.state_key(*service), keys.load_key(*service), keys.expiry_key(*service))
    return _script("settle", scripts.GET_SERVICE, service_keys, replies.nothing, **service._asdict())


def read_loads(service: ServiceName) -> Operation[Loads]:
    """Read the loads of a service, and whether they still contain links that have ended."""

    def parse(reply: Any) -> Loads:
        due, loads = reply
        by_pod = {pod: int(load) for value, load in replies.pairs(loads) if (pod := _pod_id(value)) is not None}
        return Loads(int(due), by_pod)

    service_keys = (keys.load_key(*service), keys.expiry_key(*service))
    return _script("read_loads", _READ_LOADS, service_keys, parse, **service._asdict())


def mend_load(service: ServiceName, pod: int, bounds: Bounds) -> Operation[tuple[int, int]]:
    """Add to the load of a pod what it lacks, or take off what it exceeds by, at the least.

    Returns:
        What it was before and what it is now.
    """

    def parse(reply: Any) -> tuple[int, int]:
        before, after = reply
        return int(before), int(after)

    args = (pod, *bounds)
    return _script("mend_load", _MEND_LOAD, (keys.load_key(*service),), parse, args=args, **service._asdict())


def mend_member(member: Member, *, found: float | None, right: int | None, unit: int) -> Operation[bool]:
    """Add, remove or date a member; False if it is no longer what was found.

    Args:
        member: the member.
        found: its score; None: there was no such member.
        right: the score it must have; None: there must be none.
        unit: what the load of its pod gains, or loses.
    """
    service = ServiceName(member.namespace, member.service)
    args = (str(member), member.pod, "" if found is None else repr(found), "" if right is None else right, unit)
    service_keys = (keys.load_key(*service), keys.expiry_key(*service))
    return _script(
        "mend_member", _MEND_MEMBER, service_keys, replies.flag, args=args, uid=member.uid, **service._asdict()
    )


def member_scores(service: ServiceName, members: Iterable[Member]) -> Operation[list[float | None]]:
    """Read the scores of members, in their order; None for one that is not there."""

    def parse(reply: Any) -> list[float | None]:
        return [None if score is None else float(score) for score in reply]

    expiry, args = keys.expiry_key(*service), tuple(map(str, members))
    return command("member_scores", "ZMSCORE", parse, keys=(expiry,), args=args, **service._asdict())


def scan_members(service: ServiceName, cursor: int, count: int) -> Operation[tuple[int, dict[Member, float]]]:
    """Take one slice of the members of a service.

    Args:
        service: the service.
        cursor: 0 to start, then the one returned.
        count: about how many members the server looks at.

    Returns:
        The next cursor, 0 at the end, and the members with their scores. What names no link of the service is left out.
    """

    def parse(reply: Any) -> tuple[int, dict[Member, float]]:
        after, flat = reply
        scores = replies.pairs(flat)
        found = {member: float(score) for value, score in scores if (member := _member(service, value)) is not None}
        return int(after), found

    expiry, args = keys.expiry_key(*service), (cursor, "COUNT", count)
    return command("scan_members", "ZSCAN", parse, keys=(expiry,), args=args, **service._asdict())


def _script(
    name: str,
    script: Script,
    script_keys: tuple[str, ...],
    parse: Callable[[Any], T],
    *,
    args: tuple[str | int, ...] = (),
    namespace: str,
    service: str | None = None,
    uid: str = "",
) -> Operation[T]:
    shape = Shape(name, parse, script=script, keys=script_keys, before=args, namespace=namespace, service=service)
    return Operation(shape, uid)


def _pod_id(value: Any) -> int | None:
    """A podId as the scripts write it; None for what another client put there."""
    text = replies.utf8(value)
    return int(text) if text and _POD_ID(text) else None


def _service_name(namespace: str, value: Any) -> str | None:
    """A service; None for a field that cannot be the name of one."""
    text = replies.utf8(value)
    return text if text and keys.service_of_key(keys.state_key(namespace, text)) else None


def _member(service: ServiceName, value: Any) -> Member | None:
    text = replies.utf8(value) or ""
    pod, _, link = text.partition(" ")
    pod_id, uid = _pod_id(pod), keys.uid_of_key(link.removesuffix(service.service))
    if pod_id is None or uid is None:
        return None
    member = Member(service.namespace, uid.uid, service.service, pod_id)
    return member if str(member) == text else None
