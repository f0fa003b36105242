"""The code broken on purpose, one text each, to see whether the tests notice. See `judging`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

REPOSITORY: Final = Path(__file__).parents[2]

LINKS: Final = ("tests/store/test_links.py", "tests/store/test_loads.py", "tests/store/test_wire.py")
PICKS: Final = ("tests/store/test_picks.py", *LINKS)
STATES: Final = ("tests/store/test_states.py", "tests/store/test_picks.py", "tests/store/test_loads.py")
TWO: Final = ("tests/store/test_loads.py", "tests/store/test_links.py")
CLUSTER: Final = "cluster and blocking"
LOADS: Final = ("tests/store/test_loads.py",)
WIRE: Final = ("tests/store/test_wire.py",)
LISTED: Final = ("tests/store/test_links.py",)
PICKED: Final = ("tests/store/test_picks.py",)
TYPES: Final = ("tests/store/test_failures.py",)
ARGUMENTS: Final = ("tests/store/test_arguments.py",)


@dataclass(frozen=True, slots=True)
class Mutant:
    """One way to break a file.

    Attributes:
        source: name of a script, or the path of another file in the repository.
        text: what is replaced; it occurs once.
        becomes: what stands there instead.
        breaks: what it then does wrong.
        tests: files or node ids of tests that should notice, where the model cannot.
        only: which of these tests, as an expression of pytest's `-k`.
    """

    source: str
    text: str
    becomes: str
    breaks: str
    tests: Sequence[str] = ()
    only: str = "valkey"

    def __str__(self) -> str:
        return f"{self.source} {self.breaks}"

    @property
    def script(self) -> str | None:
        """Name of the script, or None for another file."""
        return None if "/" in self.source else self.source

    @property
    def path(self) -> str:
        """Of the file, in the repository."""
        return f"lua/{self.source}.lua" if self.script else self.source

    def apply(self, source: str) -> str:
        """The broken text of the file.

        Raises:
            ValueError: the text to replace does not occur exactly once.
        """
        if source.count(self.text) != 1:
            raise ValueError(f"{self}: {self.text!r} occurs {source.count(self.text)} times")
        return source.replace(self.text, self.becomes)


_FIELD = "redis.call('HSET', links, svc, pod)"
_FIELD_LIVES = "redis.pcall('HPEXPIREAT', links, ends, 'FIELDS', 1, svc)"
_TEMPORARY = "redis.call('SET', link, pod, 'PXAT', ends)"
_PERMANENT = "redis.call('SET', link, pod)"
_COUNT = "redis.call('HINCRBY', load, pod, 1)"
_COUNT_TAKEN = "redis.call('HINCRBY', load, taken, 1)"
_UNCOUNT = "redis.call('HINCRBY', load, given, -1) <= 0"
_DROP_ZERO = "redis.call('HDEL', load, given)"
_ENDED_MEMBER = "given = redis.call('ZREM', expiry, previous .. ' ' .. link) == 1 and previous"
_ENDED_ANYWAY = "redis.call('ZREM', expiry, previous .. ' ' .. link) given = previous"
_UNSETTLED_ENDS = "redis.call('ZADD', expiry, ends, pod .. ' ' .. link) == 1"
_UNSETTLED = "redis.call('ZREM', expiry, pod .. ' ' .. link) == 0"
_LISTED = "= listed and previous"
_GIVEN_AT_ALL = "local window = persist > 0"
_DELISTED = "redis.call('HDEL', links, svc)"
_READY = "pods[i + 1] == 'Ready' and"
_TIE = "time[2] % count + 1"
_ITS_LOAD = "tonumber(load_of[pod] or 0)"
_SETTLED = "redis.call('ZREM', expiry, unpack(ended))"
_DUE = "'-inf', string.format('%.0f', now),"
_UNIT_BACK = "redis.call('HINCRBY', load, its_pod, -1) <= 0"
_BOUND = "'LIMIT', 0, 1000"


def _linking(script: str, count: str = _COUNT) -> Iterator[Mutant]:
    """What the scripts that make links have in common."""
    yield from _checking(script)
    yield Mutant(script, _FIELD, "", "forgets the field")
    yield Mutant(script, _TEMPORARY, _PERMANENT, "forgets the time to live")
    yield Mutant(script, "persist * 1000)", "persist)", "takes seconds for milliseconds")
    yield Mutant(script, _FIELD_LIVES, "", "gives the field no time to live")
    yield Mutant(script, _PERMANENT, "redis.call('SET', link, pod, 'PX', 99999999)", "makes no permanent link")
    yield Mutant(script, count, "", "forgets the load")
    yield Mutant(
        script, _UNSETTLED_ENDS, f"{_UNSETTLED_ENDS} or true", "counts an unsettled link that ends twice", LOADS
    )
    yield Mutant(script, _UNSETTLED, "true", "counts an unsettled link twice", LOADS)
    yield Mutant(script, _UNSETTLED_ENDS, "true", "forgets when the load ends")


def _checking(script: str) -> Iterator[Mutant]:
    """What all scripts have in common that take arguments."""
    yield Mutant(script, "if wrong then", "if false then", "takes any argument", ARGUMENTS, "valkey and refused")


def _replacing(script: str) -> Iterator[Mutant]:
    """What the scripts that replace a link have in common."""
    yield Mutant(script, _UNCOUNT, "false", "leaves the load with the pod before")
    yield Mutant(script, _DROP_ZERO, "", "keeps a load of zero")
    yield Mutant(script, _ENDED_MEMBER, "given = previous", "leaves the end of the link before")
    yield Mutant(script, _ENDED_MEMBER, "", "takes a listed link's load off and leaves its end")
    yield Mutant(script, _ENDED_MEMBER, _ENDED_ANYWAY, "takes the load of a link in its reconnect window off again")
    yield Mutant(script, _LISTED, "= previous", "takes off a load that a link which nobody lists never had", WIRE)


def _relinking(script: str) -> Iterator[Mutant]:
    """What the scripts that may link a uid to the pod it has do about its load."""
    yield Mutant(script, "if given ~= taken then", "if not given then", "leaves the load behind on a move")


def _writing_after_reading(script: str) -> Iterator[Mutant]:
    reading = "local temporary = previous and redis.call('PTTL', link) >= 0"
    early = f"redis.call('SET', link, '7')\n{reading}"
    yield Mutant(script, reading, early, "writes before it has read all", TYPES, "leaves_the_link")


def _booking(script: str) -> Iterator[Mutant]:
    """What is told to a caller that books the load itself."""
    yield Mutant(
        script,
        "local booking = book and book ~= ''",
        "local booking = false",
        "tells nobody what to book",
        TWO,
        CLUSTER,
    )
    yield Mutant(script, "temporary and 1 or 0", "0", "tells of temporary links as of permanent ones", TWO, CLUSTER)


def _removing(script: str) -> Iterator[Mutant]:
    """What the scripts that remove a link have in common."""
    yield from _checking(script)
    yield Mutant(script, "redis.call('DEL', link)", "", "keeps the string")
    yield Mutant(script, _DELISTED, "redis.call('HEXISTS', links, svc)", "forgets the field")
    yield Mutant(script, _DELISTED, f"window and 1 or {_DELISTED}", "keeps the field in the reconnect window")
    yield Mutant(
        script,
        f"local listed = {_DELISTED} == 1\nif not previous then",
        f"if not previous then return 0 end\nlocal listed = {_DELISTED} == 1\nif false then",
        "keeps a field whose string is gone",
        LISTED,
    )
    yield Mutant(script, _GIVEN_AT_ALL, "local window = false", "knows no reconnect window")
    yield Mutant(script, "redis.call('PEXPIREAT', link, string.format('%.0f', ends))", "", "never ends the window")
    yield Mutant(script, "persist * 1000", "persist", "takes seconds for milliseconds")
    yield Mutant(script, "return 1", "return 0", "denies what it did")


def _picking(script: str) -> Iterator[Mutant]:
    """What the scripts that pick a pod have in common."""
    yield Mutant(script, _READY, "", "picks a pod in any state")
    yield Mutant(script, _READY, "pods[i + 1] ~= 'Draining' and", "takes all but draining for routable", PICKED)
    yield Mutant(script, _ITS_LOAD, "0", "knows no load")
    yield Mutant(script, _ITS_LOAD, f"({_ITS_LOAD} or 0)", "picks a pod whose load is no number", PICKED)
    yield Mutant(
        script, "if its_load < least then", "if its_load > least or least == math.huge then", "picks the most loaded"
    )
    yield Mutant(script, _TIE, "1", "piles ties on the first pod", PICKED)
    yield Mutant(script, "if count == 0 then", "if false then", "does not know what to do without a pod")


def _settling(script: str) -> Iterator[Mutant]:
    """What the scripts that settle loads have in common."""
    yield Mutant(script, _DUE, "'-inf', '-inf',", "never settles")
    yield Mutant(script, _DUE, "'-inf', '+inf',", "settles what has not ended")
    yield Mutant(script, _UNIT_BACK, "false", "forgets the links that ended without giving their load back")
    yield Mutant(script, _SETTLED, "", "settles the same links again and again")
    yield Mutant(script, "redis.call('HDEL', load, its_pod)", "", "keeps a load of zero")


def _links() -> Iterator[Mutant]:
    yield from _linking("statefulSetLink", _COUNT_TAKEN)
    yield from _replacing("statefulSetLink")
    yield from _relinking("statefulSetLink")
    yield from _writing_after_reading("statefulSetLink")
    yield from _booking("statefulSetLink")
    told = "\nreturn previous or -1"
    yield Mutant("statefulSetLink", told, "\nreturn -1", "keeps the previous pod to itself")
    yield Mutant("statefulSetLink", told, "\nreturn pod", "tells the new pod for the previous one")
    yield Mutant(
        "statefulSetLink", "pod, ends or ''}", "pod, ''}", "does not tell when to give a load back", TWO, CLUSTER
    )

    name = "statefulTrySetLink"
    refusal = "if previous and not temporary and previous ~= pod and previous ~= expected then"
    yield from _linking(name, _COUNT_TAKEN)
    yield from _replacing(name)
    yield from _relinking(name)
    yield from _writing_after_reading(name)
    yield Mutant(name, refusal, "if false then", "drops the comparison")
    yield Mutant(name, " and previous ~= expected", "", "ignores who is expected")
    yield Mutant(name, "previous ~= expected", "not expected", "takes anybody for the expected")
    yield Mutant(name, " and previous ~= pod", "", "gives way to a link to the same pod")
    yield Mutant(name, " and not temporary", "", "gives way to a temporary link")
    yield Mutant(name, "or {previous, 0}", "or {pod, 0}", "tells the pod that was refused")
    yield Mutant(name, "return {pod, 1}", "return {previous or pod, 1}", "tells the pod before")

    name = "statefulSetLinkIfAbsent"
    yield from _linking(name)
    yield Mutant(name, "if current then", "if false then", "drops the comparison")
    yield Mutant(
        name, "if current then", "if current and redis.call('PTTL', link) < 0 then", "overwrites a temporary link"
    )
    yield Mutant(name, "or current", "or pod", "tells the pod that it did not link")

    name = "statefulRemoveLink"
    yield from _removing(name)
    yield from _replacing(name)
    yield Mutant(name, "0, '', ''} or 0", "0, '', ''} or 1", "tells of a link that was none")
    yield from _booking(name)

    name = "statefulRemoveLinkWithId"
    yield from _removing(name)
    yield from _replacing(name)
    yield Mutant(name, "if previous and previous ~= pod then", "if false then", "drops the comparison")
    yield Mutant(name, "previous ~= pod", "previous < pod", "removes the links to lower pods")
    yield from _booking(name)


def _reads_and_picks() -> Iterator[Mutant]:
    name = "statefulGetLinkIfPersist"
    yield Mutant(name, " and redis.call('PTTL', KEYS[1]) == -1", "", "tells of temporary links")
    yield Mutant(name, "== -1", "~= -1", "tells of temporary links alone")
    yield Mutant(name, "return -1", "return 0", "takes pod 0 for none")

    name = "statefulComputeLinkIfAbsent"
    yield from _linking(name)
    yield from _picking(name)
    yield from _settling(name)
    yield Mutant(name, "if current then", "if false then", "links again what is linked")
    yield Mutant(
        name, "if current then", "if current and redis.call('PTTL', link) < 0 then", "overwrites a temporary link"
    )
    yield Mutant(
        name, "'sf:{' .. namespace .. ':state:'", "'sf:{' .. namespace .. ':workload:'", "looks elsewhere", WIRE
    )
    yield Mutant(name, "states .. 'load'", "states .. 'loads'", "counts elsewhere", WIRE)

    name = "statefulGetLinkService"
    yield Mutant(name, "redis.call('HDEL', links, svc)", "", "prunes nothing", LISTED)
    yield Mutant(
        name, "redis.call('GET', links .. fields[i])", "fields[i + 1]", "lists links whose string is gone", LISTED
    )
    yield Mutant(name, "KEYS[2] or KEYS[1]", "KEYS[1]", "does not know the form with two keys", WIRE)
    yield Mutant(name, "gone[#gone + 1] = fields[i]", "gone = fields", "prunes what lives", LISTED)


def _services() -> Iterator[Mutant]:
    name = "statefulGetServicePod"
    yield from _picking(name)
    yield from _settling(name)
    yield Mutant(name, "redis.call('HINCRBY', load, pod, 1)", "", "reserves nothing")
    giving = "if returned ~= '' and (not temporary"
    yield Mutant(name, giving, "if false and (not temporary", "gives nothing back", PICKS)
    yield Mutant(
        name, giving, "if returned ~= '' and (true", "gives back what a temporary link never had", LINKS, CLUSTER
    )
    yield Mutant(name, "left >= 0 and returned", "returned", "gives back what was not reserved", PICKS)
    yield Mutant(name, "HINCRBY', load, taken, 1", "HINCRBY', load, taken, 0", "books nothing", TWO, CLUSTER)
    yield Mutant(name, "ZADD', expiry, ends, taken", "ZCARD', expiry", "books no end", TWO, CLUSTER)
    yield Mutant(name, "redis.call('HDEL', load, returned)", "", "lets the load fall below zero")

    name = "statefulGetService"
    yield from _settling(name)
    yield Mutant(name, "redis.call('HGETALL', load)}", "{}}", "tells no loads")
    yield Mutant(name, _BOUND, "'LIMIT', 0, 9000", "settles any number at once", LOADS)


def _states(name: str) -> Iterator[Mutant]:
    yield from _checking(name)
    newer = "if #theirs > #ours or (#theirs == #ours and theirs > ours) then"
    yield Mutant(name, newer, "if false then", "drops the comparison")
    yield Mutant(name, newer, "if tonumber(theirs) > tonumber(ours) then", "compares versions as doubles")
    yield Mutant(name, newer, "if theirs > ours then", "compares versions as words")
    yield Mutant(name, "and theirs > ours", "and theirs >= ours", "refuses an equal version")
    yield Mutant(name, "string.gsub(version, '^0+', '')", "version", "counts our leading zeros")
    yield Mutant(name, "string.gsub(stored, '^0+', '')", "stored", "counts their leading zeros")
    yield Mutant(name, "not string.match(version, '^%d*$')", "false", "takes any version")
    yield Mutant(name, "redis.call('HSET', versions, pod, version)", "", "forgets the version")
    yield Mutant(
        name, "redis.call('HDEL', versions, pod)", "", "keeps the version of an unversioned write from then on"
    )
    yield Mutant(
        name, "redis.call('HDEL', states, pod)", "redis.call('HSET', states, pod, '')", "keeps the removed pod"
    )
    yield Mutant(name, "redis.call('HSET', states, pod, state)", "", "forgets the state")
    yield Mutant(name, "redis.call('EXPIRE', versions, TOMBSTONE_SECONDS)", "", "keeps versions for ever")
    yield Mutant(
        name,
        "redis.call('EXPIRE', versions, TOMBSTONE_SECONDS)",
        "redis.call('DEL', versions)",
        "forgets removals at once",
    )
    yield Mutant(name, "redis.call('PERSIST', versions)", "", "forgets the versions of living pods")
    yield Mutant(name, "redis.call('DEL', states)", "", "keeps the removed workload")
    yield Mutant(name, "redis.call('SET', states, state)", "", "forgets the workload's state")
    yield Mutant(name, "redis.call('DEL', versions)", "", "keeps the version of an unversioned workload from then on")
    yield Mutant(
        name, "redis.call('SET', versions, version, 'EX', TOMBSTONE_SECONDS)", "", "does not fence a removed workload"
    )
    yield Mutant(name, ", 'EX', TOMBSTONE_SECONDS)", ")", "keeps a removed workload's version for ever")
    yield Mutant(name, "redis.call('SET', versions, version)", "", "forgets the workload's version")
    yield Mutant(name, "stored = redis.call('GET', versions)", "", "does not fence workloads")


def _python() -> Iterator[Mutant]:
    batch = "operator/podlink/store/operations/scripts.py"
    merging = ("tests/store/test_merging.py",)
    whole = ("tests/proofs/test_model.py",)
    yield Mutant(batch, "pcall(script, keys, args)", "true, script(keys, args)", "fails all for one", merging)
    yield Mutant(batch, "KEYS[keys_before + i]", "KEYS[i]", "gives a run the keys of the first", whole)
    yield Mutant(batch, "args[before + own + i] =", "args[before + i] =", "mixes up arguments", merging)
    yield Mutant(batch, "keys_before = keys_before + tonumber(key_count)", "", "forgets whose keys are whose", whole)

    cluster = "operator/podlink/store/topology/cluster.py"
    settled = "yield from _settle(operation, given=given, temporary=temporary, taken=taken, ends=ends)"
    yield Mutant(cluster, settled, "pass", "books no load", TWO, CLUSTER)
    lost = "# Somebody else linked the uid meanwhile.\n        yield from _settle("
    yield Mutant(cluster, lost, "dict(", "keeps the reservation of a loser", PICKS, "cluster and one_winner")
    linking = "attempt = operations.set_linked_pod_if_absent("
    overwriting = "attempt = operations.set_linked_pod("
    yield Mutant(cluster, linking, overwriting, "links what is linked meanwhile", PICKS, "cluster and one_winner")
    waves = "for wave in _waves(many):"
    yield Mutant(
        cluster,
        waves,
        "for wave in (many,):",
        "lets a read overtake a pick",
        ("tests/store/test_pipelines.py",),
        "cluster",
    )

    cache = "operator/podlink/store/aio/cache.py"
    cached = ("tests/store/test_cache.py",)
    yield Mutant(
        cache,
        "else asked_at + ttl_ms / 1000",
        "else _FOR_EVER",
        "keeps a link beyond its time",
        cached,
        "without_a_word",
    )
    yield Mutant(cache, "self._asked.pop(link, None)", "pass", "keeps what was overtaken", cached, "overtook")
    yield Mutant(cache, "        self.entries.clear()", "        pass", "outlives its connection", cached)

    counted, from_now = "else asked_at +", "else __import__('time').monotonic() +"
    yield Mutant(cache, counted, from_now, "counts a link's time from the answer", cached, "question")

    pipelines = ("tests/store/test_pipelines.py",)
    calls = "operator/podlink/store/batching/exchange.py"
    text = "with_text=operation.shape.target not in known"
    yield Mutant(calls, text, "with_text=False", "lets a read overtake an unknown script", pipelines)
    failures = ("tests/store/test_failures.py",)
    outcomes = "operator/podlink/store/batching/outcomes.py"
    maybe = "maybe_applied = error.sent and"
    yield Mutant(outcomes, maybe, "maybe_applied = False and", "denies what it may have done", failures)
    refused = ("tests/store/test_names.py",)
    keys = "operator/podlink/domain/keys.py"
    number = "isinstance(value, int) and not isinstance(value, bool)"
    yield Mutant(keys, number, "isinstance(value, int)", "takes True for a pod", refused, "ordinal")


def _waiting() -> Iterator[Mutant]:
    """Of the code in between: what waits, what travels together, and what is believed meanwhile."""
    cached = ("tests/store/test_cache.py",)
    executor = "operator/podlink/store/aio/executor.py"
    told = "valkey and before_the_server_tells"
    bulk = ("tests/store/test_bulk.py",)
    yield Mutant(executor, "if still_true:", "if True:", "keeps what was overtaken", cached, "valkey and arrives_with")
    yield Mutant(executor, "self._cache.forget_written(many)", "pass", "tells what it has overwritten", cached, told)
    yield Mutant(executor, "future.cancel()", "pass", "goes on with a cancelled bulk", bulk, "valkey and cancelled")

    outage = ("tests/store/test_outage.py",)
    open_circuit, closed = "if left := self._circuit.seconds_left:", "if left := 0.0:"
    recovered, anew = "self._circuit.succeeded()", "valkey and begin_anew"
    for kind, file in (("async", "aio/server.py"), ("blocking", "blocking/server.py")):
        source = f"operator/podlink/store/{file}"
        dropped = f"{kind} and drops_every"
        yield Mutant(source, open_circuit, closed, "tries a server that is away all the time", outage, dropped)
        yield Mutant(source, recovered, "pass", "remembers an outage for ever", outage, f"{kind} and {anew}")
    server = "operator/podlink/store/aio/server.py"
    ping = 'connection.send([("PING",)], _ignore)'
    yield Mutant(server, ping, "pass", "leaves a connection because it is quiet", cached, "valkey and without_calls")
    circuit = "operator/podlink/store/topology/circuit.py"
    unit = ("tests/unit/test_circuit.py",)
    yield Mutant(circuit, "= random.random", "= lambda: 0.5", "brings all clients back at once", unit, "instant")

    queue = "operator/podlink/store/aio/queue.py"
    merging = ("tests/store/test_merging.py",)
    halves, many = "(len(calls) + 1) // 2)", "valkey and so_many_batches"
    yield Mutant(queue, halves, "len(calls) * 9 // 10)", "splits unevenly", merging, "valkey and busy")
    yield Mutant(queue, "len(in_flight) < MAX_IN_FLIGHT)", "True)", "has all under way at once", merging, many)
    yield Mutant(queue, "elif len(calls) == FEW:", "elif False:", "sends one batch at a time", merging, many)
    links = "operator/podlink/store/operations/links.py"
    weight = "_TEMPORARY_WEIGHT if persist_seconds > 0 else 1"
    yield Mutant(links, weight, "1", "keeps the server long with temporary links", merging, "fewer_of_what")
    listing = "weight=_LIST_WEIGHT"
    yield Mutant(links, listing, "weight=1", "keeps the server long with lists", merging, "fewer_of_what")


MUTANTS: Final = (*_links(), *_reads_and_picks(), *_services(), *_states("statefulSetState"), *_python(), *_waiting())
