"""The eleven Lua scripts: one declaration each, held against the header of its file by a test, and one made of all.

The files themselves are shared with clients in other languages. A wheel carries them as `podlink/lua`; a checkout keeps
them in its top-level `lua/`.
"""

import hashlib
from dataclasses import dataclass
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
        sha1: hexadecimal digest of the text, which is how EVALSHA names it.
    """

    name: str
    keys: tuple[str, ...]
    args: tuple[str, ...]
    reply: str
    text: str
    sha1: str


def _source(name: str) -> str:
    packaged = resources.files("podlink") / "lua" / f"{name}.lua"
    checkout = Path(__file__).parents[3] / "lua" / f"{name}.lua"
    for place in (packaged, checkout):
        if place.is_file():
            return place.read_text(encoding="utf-8")
    raise FileNotFoundError(f"{name}.lua belongs to podlink and is missing at {packaged}: install podlink again")


def _declare(name: str, *, keys: str, args: str = "", reply: str) -> Script:
    text = _source(name)
    return Script(name, tuple(keys.split()), tuple(args.split()), reply, text, _sha1(text))


def _sha1(text: str) -> str:
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


SET_LINK: Final = _declare(
    "statefulSetLink",
    keys="link links load? expiry?",
    args="svc podId persist",
    reply="the previous podId, or -1.",
)
TRY_SET_LINK: Final = _declare(
    "statefulTrySetLink",
    keys="link links load? expiry?",
    args="svc podId persist expected?",
    reply="{current podId, 1 if ours is set else 0}.",
)
SET_LINK_IF_ABSENT: Final = _declare(
    "statefulSetLinkIfAbsent",
    keys="link links load? expiry?",
    args="svc podId persist",
    reply="the podId now linked.",
)
REMOVE_LINK: Final = _declare(
    "statefulRemoveLink",
    keys="link links load? expiry?",
    args="svc persist",
    reply="1, or 0 when there was no link.",
)
REMOVE_LINK_WITH_ID: Final = _declare(
    "statefulRemoveLinkWithId",
    keys="link links load? expiry?",
    args="svc podId persist",
    reply="1, or 0 when there was no link to that pod.",
)
GET_LINK_IF_PERSIST: Final = _declare(
    "statefulGetLinkIfPersist",
    keys="link links?",
    reply="the podId, or -1.",
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
    args="podId?",
    reply="the podId, or -1: no routable pod, or nothing to give back.",
)
GET_SERVICE: Final = _declare(
    "statefulGetService",
    keys="states load? expiry?",
    reply="{{podId, state, podId, state, ...}, {podId, load, podId, load, ...}}.",
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


_BATCH_HEAD: Final = """\
--[[
  Runs many calls of the scripts below, in order. An error of one is its own reply, and keeps no other from running.

  KEYS  those of all calls, one call after the other

  ARGV  runs of calls of one form, one after the other: number of the script, keys of a call, arguments of a call,
        calls in the run, and then the arguments of each

  Returns the reply of each call.
]]
local scripts = {
"""
_BATCH_TAIL: Final = """\
}
local replies, done, keys_before, at = {}, 0, 0, 1
while ARGV[at] do
  local script = scripts[tonumber(ARGV[at])]
  local key_count, arg_count = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  local call_count = tonumber(ARGV[at + 3])
  at = at + 4
  for _ = 1, call_count do
    local keys, args = {}, {}
    for i = 1, key_count do
      keys[i] = KEYS[keys_before + i]
    end
    for i = 1, arg_count do
      args[i] = ARGV[at + i - 1]
    end
    keys_before, at = keys_before + key_count, at + arg_count
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
end
return replies
"""


def _declare_batch() -> Script:
    bodies = "".join(f"-- {script.name}\nfunction(KEYS, ARGV)\n{script.text.rstrip()}\nend,\n" for script in ALL)
    text = _BATCH_HEAD + bodies + _BATCH_TAIL
    return Script("batch", ("key?",), ("run?",), "the reply of each call.", text, _sha1(text))


BATCH: Final = _declare_batch()
"""Generated from the files, so that no script is written twice. It is no part of the contract with other clients."""
