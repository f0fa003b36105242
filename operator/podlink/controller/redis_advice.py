"""Whether the Redis servers are set up to keep links: not too old, not evicting, and with their data on disk.

Redis works without these, so none of them is a failure. They are warnings that say what to change.
"""

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress

from podlink.controller.monitor import RedisMonitor
from podlink.domain.errors import PodLinkError, RedisUnavailable
from podlink.store import operations
from podlink.store.aio.executor import StatefulExecutor

logger = logging.getLogger(__name__)

OLDEST = (7, 0)
"""The oldest version of Redis that PodLink supports: the recount asks with PEXPIRETIME, which is new in it.

Valkey reports the version of Redis that it is compatible with.
"""

_PERIOD_SECONDS = 60.0
_SNAPSHOT_SECONDS = 3600
"""Any save point that Redis has by default makes a snapshot in that time, if a key was written. The operator writes one
each second."""


class RedisAdvisor:
    """Asks the servers at the start, once a minute, and at once after a failover.

    Attributes:
        warnings: what should be changed, a sentence each; as of the last answer.
    """

    def __init__(self, executor: StatefulExecutor, monitor: RedisMonitor) -> None:
        self._executor = executor
        self._monitor = monitor
        self._again = asyncio.Event()
        self.warnings: list[str] = []

    def look_again(self) -> None:
        """Ask soon, because other servers may answer now."""
        self._again.set()

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            await self._monitor.available.wait()
            self._again.clear()
            # If Redis is gone again, the monitor says so, and asks for another look when it returns.
            with suppress(PodLinkError):
                self._tell(await redis_advice(self._executor))
            with suppress(TimeoutError):
                async with asyncio.timeout(_PERIOD_SECONDS):
                    await self._again.wait()

    def _tell(self, found: list[str]) -> None:
        for warning in found:
            if warning not in self.warnings:
                logger.warning("%s", warning)
        if self.warnings and not found:
            logger.info("there is no warning about Redis any more")
        self.warnings = found


async def redis_advice(executor: StatefulExecutor) -> list[str]:
    """Ask each primary how it is set up; return what should be changed, a sentence each.

    Nothing is said of what a server does not tell: a user may be forbidden INFO or CONFIG, and services of clouds
    often have no CONFIG.

    Raises:
        RedisUnavailable: a server did not answer.
    """
    nodes = await executor.nodes()
    infos = await executor.run_many([operations.server_info(node=node) for node in nodes])
    saves = await executor.run_many([operations.server_setting("save", node=node) for node in nodes])
    servers: dict[str, list[str]] = {}
    for node, info, save in zip(nodes, infos, saves, strict=True):
        for reply in (info, save):
            if isinstance(reply, RedisUnavailable):
                raise reply
        if not isinstance(info, PodLinkError):
            for problem in problems(info, None if isinstance(save, PodLinkError) else save):
                servers.setdefault(problem, []).append(node or "")
    return [f"{' '.join(['Redis', *filter(None, [', '.join(at)])])}: {problem}" for problem, at in servers.items()]


def problems(info: Mapping[str, str], save: str | None) -> list[str]:
    """Return what is wrong with the setup of a server.

    Args:
        info: the fields of INFO.
        save: the setting of that name, empty for no snapshots; None where it is not known.
    """
    found = []
    version = info.get("redis_version", "")
    if _is_old(version):
        oldest = ".".join(map(str, OLDEST))
        found.append(f"version {version} is older than {oldest}, the oldest that PodLink supports; upgrade it")
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        found.append(
            f"maxmemory-policy is {policy}, so it deletes links and states when its memory is full;"
            " set maxmemory-policy to noeviction"
        )
    if info.get("aof_enabled") == "0" and (lost := _keeps_nothing(info, save)):
        found.append(f"{lost}, so a restart loses all links; set appendonly to yes, or set save points (save)")
    return found


def _is_old(version: str) -> bool:
    major, _, rest = version.partition(".")
    minor = rest.partition(".")[0]
    return major.isdigit() and minor.isdigit() and (int(major), int(minor)) < OLDEST


def _keeps_nothing(info: Mapping[str, str], save: str | None) -> str:
    """Say why nothing is on disk where the append-only file is off; empty when it is, or may be."""
    if save is not None:
        return "" if save else "it keeps nothing on disk (neither appendonly nor save is set)"
    uptime = int(info.get("uptime_in_seconds", 0))
    # Without CONFIG, a server that ran for long and never made a snapshot has no save points.
    if uptime > _SNAPSHOT_SECONDS and info.get("rdb_last_bgsave_time_sec") == "-1":
        return f"it wrote nothing to disk since it started {uptime // _SNAPSHOT_SECONDS} h ago (appendonly is not set)"
    return ""
