"""What is in Redis, key by key, and a way to let time pass for it.

Time passes by moving every instant that is stored nearer by so many seconds: the ends of strings, of hashes, of single
fields, and those in the sorted sets of ends. That is as good as waiting, because neither the scripts nor the server
know any instant but these and the present, and they do nothing with them but compare them with the present. What they
compare is the same, whether the present moves on or the instants move back. `test_model` holds it against real waiting.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import redis

if TYPE_CHECKING:
    from proofs.contract import Facts

_SNAPSHOT = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local found = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  local kind, ends = redis.call('TYPE', key).ok, redis.call('PEXPIRETIME', key)
  local content, field_ends = {}, {}
  if kind == 'string' then
    content = {'', redis.call('GET', key)}
  elseif kind == 'hash' then
    content = redis.call('HGETALL', key)
    for i = 1, #content, 2 do
      local reply = redis.pcall('HPEXPIRETIME', key, 'FIELDS', 1, content[i])
      field_ends[#field_ends + 1] = reply.err and -1 or reply[1]
    end
  elseif kind == 'zset' then
    content = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
  end
  found[#found + 1] = {key, kind, ends, content, field_ends}
end
return {now, found}
"""

_ADVANCE = """
local by = tonumber(ARGV[1])
for _, key in ipairs(redis.call('KEYS', '*')) do
  local kind, ends = redis.call('TYPE', key).ok, redis.call('PEXPIRETIME', key)
  if kind == 'zset' then
    for _, member in ipairs(redis.call('ZRANGE', key, 0, -1)) do
      redis.call('ZINCRBY', key, -by, member)
    end
  elseif kind == 'hash' then
    for _, field in ipairs(redis.call('HKEYS', key)) do
      local reply = redis.pcall('HPEXPIRETIME', key, 'FIELDS', 1, field)
      if not reply.err and reply[1] > 0 then
        redis.call('HPEXPIREAT', key, string.format('%.0f', reply[1] - by), 'FIELDS', 1, field)
      end
    end
  end
  if ends > 0 then
    redis.call('PEXPIREAT', key, string.format('%.0f', ends - by))
  end
end
"""


def pass_time(client: redis.Redis | redis.RedisCluster, seconds: int) -> None:
    """Let everything that ends do so `seconds` earlier; what would end before now is gone."""
    _on_every_primary(client, _ADVANCE, seconds * 1000)


def _on_every_primary(client: redis.Redis | redis.RedisCluster, script: str, *args: int) -> list[Any]:
    """Run a script that looks at all keys of a server; what each server says."""
    if isinstance(client, redis.RedisCluster):
        everywhere: Any = client.execute_command
        return [*everywhere("EVAL", script, 0, *args, target_nodes=redis.RedisCluster.PRIMARIES).values()]
    return [client.eval(script, 0, *args)]


class Keyspace:
    """Everything in Redis at one moment.

    Attributes:
        facts: what is there, in the words of the contract. A temporary link that has ended is a load until somebody
            looks at its service; that is settled here, so loads are as the next look will find them.
        problems: what no moment may show: loads that are no numbers above 0, ends of one link that differ.
    """

    def __init__(self, client: redis.Redis | redis.RedisCluster) -> None:
        self.facts: Facts = {}
        self.problems: list[str] = []
        self._ends: dict[tuple[str, str], int] = {}
        self._ended: list[tuple[str, str]] = []
        for now, found in _on_every_primary(client, _SNAPSHOT):
            self._now = now
            for key, kind, ends, content, field_ends in found:
                self._take(key, kind, ends, content, field_ends)
        self._settle()
        self._compare_ends()

    def _take(self, key: str, kind: str, ends: int, content: list[str], field_ends: list[int]) -> None:
        pairs = list(zip(content[::2], content[1::2], strict=True))
        if kind == "zset":
            for member, score in pairs:
                if int(score) <= self._now:
                    self._ended.append((key, member))
                else:
                    self._put(key, member, "", int(score))
        elif kind == "hash":
            for (name, value), field_end in zip(pairs, field_ends, strict=True):
                self._put(key, name, value, max(field_end, ends))
        elif kind == "string":
            self._put(key, "", pairs[0][1], ends)
        else:
            self.problems.append(f"{key} is a {kind}")

    def _put(self, key: str, name: str, value: str, ends: int) -> None:
        if ends >= 0:
            self._ends[key, name] = ends
        self.facts[key, name] = (value, (ends - self._now) / 1000 if ends >= 0 else None)

    def _settle(self) -> None:
        for (key, pod), (load, _) in self.facts.items():
            if key.endswith("}load") and not (load.isdigit() and int(load) > 0):
                self.problems.append(f"{key} of pod {pod} is {load}")
        for key, member in self._ended:
            load, pod = key.removesuffix("exp") + "load", member.split(" ")[0]
            left = int(self.facts.get((load, pod), ("0", None))[0]) - 1
            if left < 0:
                self.problems.append(f"{member} has ended and is no load of its pod")
            elif left == 0:
                del self.facts[load, pod]
            else:
                self.facts[load, pod] = (str(left), None)

    def _compare_ends(self) -> None:
        """A link ends at one instant, to the millisecond: its string, its field, and its place among the ends."""
        for (key, name), ends in self._ends.items():
            if key.endswith("}exp"):
                string = name.split(" ", 1)[1]
            elif ":lk:" in key and name:
                string = key + name
            else:
                continue
            if self._ends.get((string, "")) != ends:
                self.problems.append(
                    f"{name} of {key} ends {ends - self._now} ms from now, {string} {self._of(string)}"
                )

    def _of(self, string: str) -> str:
        ends = self._ends.get((string, ""))
        return "does not end" if ends is None else f"in {ends - self._now} ms"


def differences(found: Facts, expected: Facts, slack_seconds: float) -> list[str]:
    """What is in Redis and should not be, the other way round, and what is not as it should be; in words.

    Args:
        found: what is there.
        expected: what has to be there.
        slack_seconds: so much less may be left of the time something has to live, for the test itself takes time.
    """
    told = [f"{_words(*item)} should not be there" for item in found.items() if item[0] not in expected]
    for name, (value, seconds) in expected.items():
        if name not in found:
            told.append(f"{_words(name, (value, seconds))} is missing")
            continue
        there = found[name]
        lives = there[1] is None if seconds is None else there[1] and seconds - slack_seconds <= there[1] <= seconds
        if there[0] != value or not lives:
            told.append(f"{_words(name, there)} should be {_words(name, (value, seconds))}")
    return told


def _words(name: tuple[str, str], fact: tuple[str, Any]) -> str:
    (key, member), (value, seconds) = name, fact
    where = f"{key} {member!r}" if member else key
    return f"{where} = {value!r} ({'for ever' if seconds is None else f'{seconds:.0f} s'})"
