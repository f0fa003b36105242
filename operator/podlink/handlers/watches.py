"""The Kopf handlers. Each hands its event over to the operator's own loop and returns.

They are all `on.event`: nothing is written to the watched objects, and what to do is decided from the state of
things, not from the difference of two events.
"""

import asyncio
from typing import Any

import kopf

from podlink.controller.intake import Intake
from podlink.domain.podlinks import GROUP, PLURAL, VERSION


def build_registry(intake: Intake, loop: asyncio.AbstractEventLoop) -> kopf.OperatorRegistry:
    """Return the handlers of one operator, which call the intake in the given loop."""
    registry = kopf.OperatorRegistry()

    @kopf.on.event("", "v1", "pods", registry=registry)
    async def pod(event: kopf.RawEvent, **_: Any) -> None:
        loop.call_soon_threadsafe(intake.pod, event["type"], event["object"])

    @kopf.on.event("apps", "v1", "statefulsets", registry=registry)
    async def stateful_set(event: kopf.RawEvent, **_: Any) -> None:
        loop.call_soon_threadsafe(intake.workload, event["type"], event["object"])

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)
    async def podlink(event: kopf.RawEvent, **_: Any) -> None:
        loop.call_soon_threadsafe(intake.podlink, event["type"], event["object"])

    return registry
