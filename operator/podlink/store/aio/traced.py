"""The operator's executor where spans are exported: each call is a step of the span that it is made in."""

from collections.abc import Sequence
from typing import TypeVar

from podlink import tracing
from podlink.domain.errors import PodLinkError
from podlink.store.aio.executor import StatefulExecutor
from podlink.store.operations import Operation

T = TypeVar("T")


class TracedExecutor(StatefulExecutor):
    """Runs operations as its base does, and makes a span of each `run` and `run_many`, as which the operator calls."""

    async def run(self, operation: Operation[T]) -> T:
        """Run one operation."""
        with tracing.step("redis", **{"db.system.name": "redis", "db.operation.name": operation.name}):
            return await super().run(operation)

    async def run_many(self, many: Sequence[Operation[T]]) -> list[T | PodLinkError]:
        """Run many; the span fails with the first of them."""
        names = " ".join(dict.fromkeys(operation.name for operation in many))
        attributes: dict[str, str | int] = {
            "db.system.name": "redis",
            "db.operation.name": names,
            "db.operation.batch.size": len(many),
        }
        with tracing.step("redis", **attributes) as made:
            results = await super().run_many(many)
            error = next((result for result in results if isinstance(result, PodLinkError)), None)
            if error is not None:
                tracing.failed(made, error)
            return results
