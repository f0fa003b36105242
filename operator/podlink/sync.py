"""The blocking executor, for services that don't run on asyncio: `from podlink.sync import StatefulExecutor`."""

from podlink.store.blocking import StatefulExecutor

__all__ = ["StatefulExecutor"]
