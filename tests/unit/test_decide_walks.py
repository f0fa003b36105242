"""Whatever happens, PodLinks come to rest by themselves, and what rests is right.

Random histories of a small world: other clients, pods that come and go, edits, deletions, a Redis that loses its data,
an operator that dies anywhere. After any of them, once the operator looks at everything again, the links must be right
and nothing may be left to do.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from effort import by_profile
from podlink.domain.decide import Facts, decide
from podlink.domain.podlinks import TERMINAL, OnPodLoss, Phase, PodLink, Policy, Reason
from podlink.domain.states import PodState
from unit.builders import NOW
from unit.world import EITHER, OTHERS, CrashError, Redis, UnsettledError, World

if TYPE_CHECKING:
    from collections.abc import Callable

POD_IDS = st.integers(0, 3)
NAMES = st.sampled_from(["a", "b", "c"])
LIFETIMES = st.sampled_from([-1, -1, 20, 60])
POLICIES = st.sampled_from([policy.value for policy in Policy])
LOSSES = st.sampled_from([loss.value for loss in OnPodLoss])

HORIZON_SECONDS = 3.5
LOOKS = 24
"""Looks at all PodLinks together until a quiet world is at rest."""


class Walk(RuleBasedStateMachine):
    """One history."""

    @initialize(expires_fields=st.booleans(), ready=st.integers(0, 3), replicas=st.sampled_from([None, 1, 3]))
    def begin(self, *, expires_fields: bool, ready: int, replicas: int | None) -> None:
        self.world = World(expires_fields=expires_fields)
        self.world.pods = dict.fromkeys(range(ready), PodState.READY)
        self.world.replicas = replicas
        self.world.write_states()
        self.world.check = self.respects_others

    # What users do.

    @rule(name=NAMES, pod_id=st.none() | POD_IDS, policy=POLICIES, persist=LIFETIMES, loss=LOSSES)
    def create(self, name: str, pod_id: int | None, policy: str, persist: int, loss: str) -> None:
        if name in self.world.api.objects or self.world.unreported:
            return
        if pod_id is not None and loss == "Relink":
            loss = "Keep"
        spec = {"podId": pod_id, "policy": policy, "persistSeconds": persist, "onPodLoss": loss}
        self.world.api.create(name, {key: value for key, value in spec.items() if value is not None})
        self.world.notice(name)

    @rule(name=NAMES, pod_id=st.none() | POD_IDS)
    def edit_pod_id(self, name: str, pod_id: int | None) -> None:
        self._edit(name, {"podId": pod_id} | ({"onPodLoss": "Keep"} if pod_id is not None else {}))

    @rule(name=NAMES, policy=POLICIES)
    def edit_policy(self, name: str, policy: str) -> None:
        self._edit(name, {"policy": policy})

    @rule(name=NAMES, persist=LIFETIMES)
    def edit_lifetime(self, name: str, persist: int) -> None:
        self._edit(name, {"persistSeconds": persist})

    @rule(name=NAMES, seconds=st.sampled_from([0, 30]))
    def edit_release(self, name: str, seconds: int) -> None:
        self._edit(name, {"releaseSeconds": seconds})

    @rule(name=NAMES)
    def delete(self, name: str) -> None:
        if name in self.world.api.objects:
            self.world.api.delete(name)
            self.world.notice(name)

    def _edit(self, name: str, change: dict[str, object]) -> None:
        # A known limit: what was written and not reported yet is forgotten when the wish changes in that moment.
        if name in self.world.api.objects and not self.world.unreported:
            self.world.api.edit(name, change)
            self.world.notice(name)

    # What other clients do.

    @rule(pod=POD_IDS, persist=LIFETIMES, meanwhile=st.booleans())
    def others_link(self, pod: int, persist: int, *, meanwhile: bool) -> None:
        self._others(lambda: self.world.redis.set(pod, persist, OTHERS), meanwhile=meanwhile)

    @rule(seconds=st.sampled_from([0, 10]), meanwhile=st.booleans())
    def others_release(self, seconds: int, *, meanwhile: bool) -> None:
        redis = self.world.redis
        self._others(lambda: redis.pod is not None and redis.remove(redis.pod, seconds), meanwhile=meanwhile)

    @rule(pod=POD_IDS)
    def others_link_without_listing(self, pod: int) -> None:
        self.world.redis.set(pod, -1, OTHERS)
        self.world.redis.listed = None

    @rule()
    def redis_loses_its_data(self) -> None:
        self.world.redis.wipe()

    def _others(self, act: Callable[[], object], *, meanwhile: bool) -> None:
        if meanwhile:
            self.world.meddle = act
        else:
            act()

    # What happens in the cluster.

    @rule(pod_id=POD_IDS, state=st.sampled_from(PodState))
    def pod_changes(self, pod_id: int, state: PodState) -> None:
        self.world.pods[pod_id] = state

    @rule(pod_id=POD_IDS)
    def pod_goes(self, pod_id: int) -> None:
        self.world.pods.pop(pod_id, None)

    @rule(replicas=st.sampled_from([None, 0, 1, 2, 3]))
    def scale(self, replicas: int | None) -> None:
        self.world.replicas = replicas

    @rule()
    def states_are_written(self) -> None:
        self.world.write_states()

    @rule(seconds=st.sampled_from([0.3, 1, 7.3, 61]))
    def time_passes(self, seconds: float) -> None:
        self.world.pass_time(int(seconds * 1000))

    # What the operator does.

    @rule(name=NAMES)
    def outage_is_reported(self, name: str) -> None:
        self.world.report_outage(name)

    @rule(name=NAMES, crash_before=st.none() | st.integers(0, 4))
    def operator_looks(self, name: str, crash_before: int | None) -> None:
        try:
            self.world.reconcile(name, crash_before=crash_before)
        except CrashError:
            self.world.restart()
        except UnsettledError:
            # Picked again and again what is no longer there: the queue's retry finds the states up to date.
            assert self.world.redis.routable != self.world.service.ready

    @precondition(lambda self: self.world.api.objects)
    @rule(restart=st.booleans())
    def all_is_quiet(self, *, restart: bool) -> None:
        self.settle(restart=restart)

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        self.settle(restart=False)
        for name in list(self.world.api.objects):
            self.world.api.delete(name)
            self.world.notice(name)
        self.settle(restart=True)
        assert not self.world.api.objects, "deleted objects do not go"

    def settle(self, *, restart: bool) -> None:
        world = self.world
        world.write_states()
        world.meddle = None
        if restart:
            world.restart()
        world.queue = list(world.api.objects)  # a sweep
        world.looks = 0
        world.run_for(HORIZON_SECONDS, LOOKS)
        assert world.looks <= LOOKS
        patches, redis = world.api.patches, (world.redis.pod, world.redis.ends, world.redis.listed)
        for name in list(world.api.objects):
            link = world.api.read(name)
            decision = decide(world.facts(link))
            assert decision.action is None, f"{name} still asks for {decision.action}"
            assert decision.status == link.status, f"{name} still has news"
            self.is_right(link)
        assert (patches, redis) == (world.api.patches, (world.redis.pod, world.redis.ends, world.redis.listed))
        self.nothing_left_behind()

    # What must hold.

    def respects_others(self, link: PodLink, facts: Facts, before: Redis, after: Redis) -> None:
        """Called after each write to Redis."""
        assert not link.settled
        self.keeps_to_its_lifetime(link, after)
        if before.author != OTHERS or (before.pod, before.ends, before.listed) == (after.pod, after.ends, after.listed):
            return
        spec, status = link.spec, link.status
        if spec.policy is Policy.SET:
            return
        if spec.policy is Policy.IF_ABSENT:
            indistinct = status.owned and (status.pod_id in (None, before.pod) or spec.pod_id == before.pod)
            # No script compares a temporary link before it overwrites it.
            overtaken = before.ends is not None and facts.record.pod_id != before.pod
            assert indistinct or overtaken, f"IfAbsent: {link.name} changed a link it did not make"
            return
        if before.ends is None and after.pod != before.pod:
            declared = before.pod in (spec.pod_id, status.pod_id if status.owned else None) or spec.pod_id is None
            assert declared, f"TrySet: {link.name} overruled a permanent link to another pod"

    def keeps_to_its_lifetime(self, link: PodLink, after: Redis) -> None:
        """A repair gives a temporary link what was left of it, not a new life."""
        status = link.status
        repaired = link.spec.temporary and status.owned and not link.edited and after.pod == status.pod_id
        if repaired and status.expires_at is not None and after.author == link.name and not link.deleting:
            promised = max(status.expires_at, self.world.now) + timedelta(seconds=1)
            assert after.ends is not None
            assert NOW + timedelta(milliseconds=after.ends) <= promised

    def is_right(self, link: PodLink) -> None:
        """What a user sees of one PodLink in a quiet world."""
        world, status, record = self.world, link.status, self.world.redis.record()
        service, wanted = world.service, link.spec.pod_id
        assert not link.deleting, f"{link.name} does not go"
        assert (status.ready.status == "True") <= (status.phase is Phase.LINKED)
        if status.phase is Phase.LINKED:
            assert status.pod_id == record.pod_id
            assert (status.expires_at is None) == (record.ttl_ms is None)
            if status.owned and status.ready.status == "True":
                assert record.listed == record.pod_id
                assert record.permanent is not link.spec.temporary
            assert wanted in (None, status.pod_id) or not status.owned
            assert (status.reason == Reason.POD_LOST) == service.lost(status.pod_id)
        if status.phase in TERMINAL:
            assert world.redis.author != link.name, f"{link.name} is settled and still holds its link"
        if status.phase in TERMINAL or world.registry.holder(link) is not None:
            return
        assert status.reason != Reason.DUPLICATE
        if status.phase is Phase.CONFLICT:
            assert record.permanent
            assert record.pod_id != wanted
        if status.phase is Phase.PENDING:
            assert not (service.ready if wanted is None else service.has(wanted))

    def nothing_left_behind(self) -> None:
        """A link that a PodLink made is there only as long as that PodLink, or in its reconnect window."""
        redis = self.world.redis
        redis.expire()
        in_window = redis.ends is not None and redis.listed is None
        if redis.author not in (None, OTHERS, EITHER) and not in_window:
            assert redis.author in self.world.api.objects, f"{redis.author} left its link behind"


Walk.TestCase.settings = settings(max_examples=by_profile(100, 5000), stateful_step_count=30)
TestWalks = Walk.TestCase
