"""Records histories of concurrent calls on real servers, and checks that each link was a register all the while.

    PYTHONPATH=operator:tests python -m proofs.histories --seconds 60
    PYTHONPATH=operator:tests python -m proofs.histories --count 5000 --seed 7 valkey "cluster, slots moving"

A history is all calls on one link in one round. What the clients of a round do follows from its seed; how their calls
meet does not, so the same seed may have to be run many times to meet a rare failure again.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from proofs.linearizability import Call, Verdict, check, smallest
from proofs.register import all_states, outcomes_with
from proofs.scenes import EMPTY, LOBBY, READY, SCENES, Scene, disturbed, furnish, makers
from proofs.workload import Form, Maker, Plan, Record, Team
from sandbox.processes import ended_by_signal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from store.harness import Topology

_UIDS: Final = 4
_BAR: Final = 40


@dataclass
class Tally:
    """What came of the histories of a scene.

    Attributes:
        histories: how many were checked.
        calls: in them, those without an answer included.
        unanswered: calls that may have happened.
        refused: calls that failed and cannot have happened; they are part of no history.
        longest: calls of one history, at most.
        undecided: histories for which the check gave up.
        failures: in words, each history that no order explains.
    """

    histories: int = 0
    calls: int = 0
    unanswered: int = 0
    refused: int = 0
    longest: int = 0
    undecided: int = 0
    failures: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.histories} histories, {self.calls} calls ({self.unanswered} without an answer, {self.refused} said"
            f" not to have happened), {self.longest} in the longest; {self.undecided} not decided,"
            f" {len(self.failures)} not linearizable"
        )

    def add(self, plan: Plan, uid: str, calls: Sequence[Call]) -> None:
        """Check one history, and count it."""
        self.histories += 1
        self.calls += len(calls)
        self.unanswered += sum(call.ended is None for call in calls)
        self.longest = max(self.longest, len(calls))
        verdict = check(calls, outcomes_with(READY[plan.service]), [None])
        self.undecided += verdict is Verdict.UNDECIDED
        if verdict is Verdict.IMPOSSIBLE:
            self.failures.append(explained(plan, uid, calls))


class Recording:
    """Clients that use the links of a topology, in the way of a scene.

    Args:
        scene: where.
        topology: the scene's, running.
        team: the processes of the clients.
        wrong: what makes the executors of each process, in the scene's stead.
        forms: of calls; all by default.
    """

    def __init__(
        self,
        scene: Scene,
        topology: Topology,
        team: Team,
        *,
        wrong: Sequence[Maker] | None = None,
        forms: tuple[Form, ...] | None = None,
    ) -> None:
        self._scene = scene
        self._topology = topology
        self._team = team
        self._forms = forms
        furnish(topology)
        team.equip(wrong or makers(scene, topology.url))

    def rounds(self, seed: int) -> Iterator[Tally]:
        """Record and check round after round, without an end, and yield the same tally after each."""
        tally = Tally()
        for number in itertools.count(seed):
            plan = self._plan(number)
            with disturbed(self._scene, self._topology, plan):
                self._team.begin(plan)
                records = self._team.records()
            tally.refused += sum(record.refused for record in records)
            for uid, calls in _by_uid(records).items():
                tally.add(plan, uid, calls)
            yield tally

    def _plan(self, seed: int) -> Plan:
        service = EMPTY if seed % 8 == 7 else LOBBY
        # An odd one has no pauses, so that more calls meet.
        pause = 0.0 if seed % 2 and self._scene.disturb is None else self._scene.pause_seconds
        plan = Plan(seed, service, tuple(f"u{seed}-{number}" for number in range(_UIDS)), self._scene.steps, pause)
        return plan._replace(forms=self._forms) if self._forms else plan


def record(
    scene: Scene,
    topology: Topology,
    team: Team,
    *,
    count: int | None = None,
    seconds: float = float("inf"),
    seed: int = 0,
) -> Tally:
    """Record and check histories until there are `count`, or `seconds` are over, or one fails."""
    end = time.monotonic() + seconds
    for tally in Recording(scene, topology, team).rounds(seed):
        if tally.failures or time.monotonic() >= end or (count is not None and tally.histories >= count):
            return tally
    raise AssertionError("rounds have no end")


def explained(plan: Plan, uid: str, calls: Sequence[Call]) -> str:
    """An impossible history in words: the part of it that is impossible by itself, drawn as time lines."""
    ready = READY[plan.service]
    pods = {pod for call in calls for pod in (call.operation.pod, call.operation.expected) if pod is not None}
    evidence = smallest(calls, outcomes_with(ready), None, all_states(frozenset(pods | ready)))
    before = "whatever the link was before" if evidence.from_any_state else "from no link"
    title = (
        f"seed {plan.seed}, link of {uid} to {plan.service} (Ready: {sorted(ready)}): {len(calls)} calls, of which no"
        f" order explains these, {before}:"
    )
    return "\n".join([title, *drawn(evidence.calls)])


def drawn(calls: Iterable[Call]) -> Iterator[str]:
    """Time lines, one a call: from `[` to `]` it was under way, `>` means that no answer came (or none in time)."""
    ordered = sorted(calls, key=lambda call: (call.began, call.place or 0))
    first = min(call.began for call in ordered)
    last = max(call.ended or call.began for call in ordered)
    scale = (_BAR - 2) / max(1, last - first)
    width = max(len(call.client) for call in ordered)
    for call in ordered:
        left = int((call.began - first) * scale)
        right = _BAR - 1 if call.ended is None else max(left + 1, int((call.ended - first) * scale) + 1)
        bar = " " * left + "[" + "-" * (right - left - 1) + (">" if call.ended is None else "]")
        place = "" if call.place is None else f"  (place {call.place} of a pipeline)"
        told = "no answer" if call.ended is None else repr(call.result)
        end = "" if call.ended is None else f"{(call.ended - first) / 1000:.0f}"
        when = f"{(call.began - first) / 1000:.0f}..{end} us"
        yield f"  {call.client:{width}}  {bar:{_BAR}}  {call.operation} = {told}{place}  {when}"


def _by_uid(records: Iterable[Record]) -> dict[str, list[Call]]:
    found: defaultdict[str, list[Call]] = defaultdict(list)
    for each in records:
        for uid, call in each.calls:
            found[uid].append(call)
    return found


def main() -> int:
    """Record histories as the command line says; 1 if one of them is not linearizable, or not decided."""
    parser = argparse.ArgumentParser(prog="python -m proofs.histories", description=__doc__.partition("\n")[0])
    parser.add_argument("scenes", nargs="*", help=f"of {', '.join(map(repr, SCENES))}; all by default")
    parser.add_argument("--count", type=int, help="histories of each scene, at least")
    parser.add_argument("--seconds", type=float, help="of each scene, if fewer; 30 by default, without --count")
    parser.add_argument("--seed", type=int, default=0, help="of the first round; those that follow count on")
    options = parser.parse_args()
    unknown = set(options.scenes) - set(SCENES)
    if unknown:
        parser.error(f"no such scene: {', '.join(map(repr, unknown))}; there are {', '.join(map(repr, SCENES))}")
    seconds = options.seconds or (float("inf") if options.count else 30)
    failed = False
    for name in options.scenes or SCENES:
        scene = SCENES[name]
        with scene.make() as topology, Team() as team:
            tally = record(scene, topology, team, count=options.count, seconds=seconds, seed=options.seed)
        print(f"{name}: {tally}", *tally.failures, sep="\n", flush=True)  # noqa: T201 - it is what was asked for
        failed = failed or bool(tally.failures or tally.undecided)
    return int(failed)


if __name__ == "__main__":
    with ended_by_signal():
        sys.exit(main())
