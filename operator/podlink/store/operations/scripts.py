"""The eleven Lua scripts: one declaration each, held against the header of its file by a test, and one made of all.

The files themselves are shared with clients in other languages. A wheel carries them as `podlink/lua`; a checkout keeps
them in its top-level `lua/`.
"""

import hashlib
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Final


@dataclass(frozen=True, slots=True, eq=False)
class Script:
    """A Lua script and its contract, which the header of its file repeats. There is one object of each.

    Attributes:
        name: of the file, without `.lua`.
        keys: names of KEYS in order; a trailing "?" marks one that may be left out.
        args: names of ARGV in order, marked likewise.
        reply: what it returns, in words.
        text: source, as sent by SCRIPT LOAD.
        writes: whether it changes what callers read; tidying up behind links that have ended is no such change.
        finds_keys: whether it uses keys of its slot that it is not given.
        sha1: hexadecimal digest of the text, which is how EVALSHA names it.
    """

    name: str
    keys: tuple[str, ...]
    args: tuple[str, ...]
    reply: str
    text: str
    writes: bool = True
    finds_keys: bool = False
    sha1: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha1", hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest())


def _source(name: str) -> str:
    packaged = resources.files("podlink") / "lua" / f"{name}.lua"
    checkout = Path(__file__).parents[4] / "lua" / f"{name}.lua"
    for place in (packaged, checkout):
        if place.is_file():
            return place.read_text(encoding="utf-8")
    raise FileNotFoundError(f"{name}.lua belongs to podlink and is missing at {packaged}: install podlink again")


def _declare(
    name: str, *, keys: str, args: str = "", reply: str, writes: bool = True, finds_keys: bool = False
) -> Script:
    return Script(name, tuple(keys.split()), tuple(args.split()), reply, _source(name), writes, finds_keys)


SET_LINK: Final = _declare(
    "statefulSetLink",
    keys="link links load? expiry?",
    args="svc podId persist book?",
    reply="the previous podId, or -1.",
)
TRY_SET_LINK: Final = _declare(
    "statefulTrySetLink",
    keys="link links load? expiry?",
    args="svc podId persist expected? book?",
    reply="{current podId, 1 if ours is set else 0}.",
)
SET_LINK_IF_ABSENT: Final = _declare(
    "statefulSetLinkIfAbsent",
    keys="link links load? expiry?",
    args="svc podId persist book?",
    reply="the podId now linked.",
)
REMOVE_LINK: Final = _declare(
    "statefulRemoveLink",
    keys="link links load? expiry?",
    args="svc persist book?",
    reply="1, or 0 when there was no link.",
)
REMOVE_LINK_WITH_ID: Final = _declare(
    "statefulRemoveLinkWithId",
    keys="link links load? expiry?",
    args="svc podId persist book?",
    reply="1, or 0 when there was no link to that pod.",
)
GET_LINK_IF_PERSIST: Final = _declare(
    "statefulGetLinkIfPersist",
    keys="link links?",
    reply="the podId, or -1.",
    writes=False,
)
COMPUTE_LINK_IF_ABSENT: Final = _declare(
    "statefulComputeLinkIfAbsent",
    keys="link links load? expiry? states?",
    args="svc persist",
    reply="the podId now linked, or -1 when there is no link and no routable pod.",
)
GET_LINK_SERVICE: Final = _declare(
    "statefulGetLinkService",
    keys="links links?",
    reply="svc, podId, svc, podId, ... in one flat list.",
    writes=False,
    finds_keys=True,
)
SET_STATE: Final = _declare(
    "statefulSetState",
    keys="states versions?",
    args="podId state version?",
    reply="1 if applied, 0 if a newer version is stored.",
)
GET_SERVICE_POD: Final = _declare(
    "statefulGetServicePod",
    keys="states load? expiry?",
    args="podId? link? temporary? taken? ends?",
    reply="the podId, or -1: no routable pod, or nothing to give back.",
)
GET_SERVICE: Final = _declare(
    "statefulGetService",
    keys="states load? expiry?",
    reply="{{podId, state, podId, state, ...}, {podId, load, podId, load, ...}}.",
    writes=False,
)

ALL: Final = (
    SET_LINK,
    TRY_SET_LINK,
    SET_LINK_IF_ABSENT,
    REMOVE_LINK,
    REMOVE_LINK_WITH_ID,
    GET_LINK_IF_PERSIST,
    COMPUTE_LINK_IF_ABSENT,
    GET_LINK_SERVICE,
    SET_STATE,
    GET_SERVICE_POD,
    GET_SERVICE,
)


READ_LINK: Final = Script(
    "readLink",
    ("link",),
    (),
    "{podId or nil, milliseconds to live}.",
    "return {redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1])}",
    writes=False,
)
"""What a cache has to know of a link, read in one step. It is no part of the contract with other clients."""


_BATCH_HEAD: Final = """\
--[[
  Runs many calls of the scripts below, in order. An error of one is its own reply, and keeps no other from running.

  Calls of one shape that follow each other are a run, and what they have in common is sent once for all of them.

  KEYS  of each run, the keys behind those of the uid

  ARGV  of each run: "<number of the script> <how many KEYS> <how many key tails> <how many arguments before> <own>
        <after>", how many calls, the head and the tails of the uid's keys, the arguments before and after those of a
        call; and then of each call: the uid (where there are tails) and its own arguments

  Returns the reply of each call.
]]
local scripts = {
"""
_BATCH_TAIL: Final = """\
}
local replies, done, keys_before, at = {}, 0, 0, 1
while ARGV[at] do
  local number, key_count, tails, before, own, after =
    string.match(ARGV[at], '^(%d+) (%d+) (%d+) (%d+) (%d+) (%d+)$')
  tails, before, own, after = tonumber(tails), tonumber(before), tonumber(own), tonumber(after)
  local script, call_count, head = scripts[tonumber(number)], tonumber(ARGV[at + 1]), ARGV[at + 2]
  local keys, args, tail_of = {}, {}, {}
  at = at + 2
  for i = 1, tails do
    tail_of[i] = ARGV[at + i]
  end
  at = at + tails
  for i = 1, tonumber(key_count) do
    keys[tails + i] = KEYS[keys_before + i]
  end
  keys_before = keys_before + tonumber(key_count)
  for i = 1, before do
    args[i] = ARGV[at + i]
  end
  at = at + before
  for i = 1, after do
    args[before + own + i] = ARGV[at + i]
  end
  at = at + after
  for _ = 1, call_count do
    if tails > 0 then
      at = at + 1
      for i = 1, tails do
        keys[i] = head .. ARGV[at] .. tail_of[i]
      end
    end
    for i = 1, own do
      args[before + i] = ARGV[at + i]
    end
    at = at + own
    local fine, reply = pcall(script, keys, args)
    if not fine and type(reply) ~= 'table' then
      reply = redis.error_reply(reply)
    end
    if reply == nil then
      reply = false
    end
    done = done + 1
    replies[done] = reply
  end
  at = at + 1
end
return replies
"""


def _declare_batch() -> Script:
    bodies = "".join(
        f"-- {script.name}\nfunction(KEYS, ARGV)\n{script.text.rstrip()}\nend,\n" for script in (*ALL, READ_LINK)
    )
    # The one plain command that callers send as often as scripts.
    bodies += "-- GET\nfunction(KEYS) return redis.call('GET', KEYS[1]) end,\n"
    text = _BATCH_HEAD + bodies + _BATCH_TAIL
    return Script("batch", ("key?",), ("run?",), "the reply of each call.", text)


BATCH: Final = _declare_batch()
"""Generated from the files, so that no script is written twice. It is no part of the contract with other clients."""

NUMBERS: Final = {
    name: str(number) for number, name in enumerate([*(script.name for script in ALL), READ_LINK.name, "GET"], start=1)
}
"""Under which number the batch knows a script, or the plain command."""
