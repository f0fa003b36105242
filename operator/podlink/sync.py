"""The blocking executor, for services that don't run on asyncio: `from podlink.sync import StatefulExecutor`."""

from podlink.store.blocking.executor import StatefulExecutor

__all__ = ["StatefulExecutor"]
