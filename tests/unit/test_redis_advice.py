"""What is said about the setup of a Redis server, from what it tells about itself."""

from __future__ import annotations

import pytest

from podlink.controller.redis_advice import problems

FINE = {"redis_version": "7.4.1", "maxmemory_policy": "noeviction", "aof_enabled": "1"}
KEEPS_NOTHING = {**FINE, "aof_enabled": "0"}
NO_SNAPSHOT = {**KEEPS_NOTHING, "uptime_in_seconds": "9000", "rdb_last_bgsave_time_sec": "-1"}


@pytest.mark.parametrize(
    ("info", "save", "told"),
    [
        (FINE, "", None),
        (FINE, None, None),
        ({}, None, None),
        ({**FINE, "redis_version": "7.0.0"}, "", None),
        ({**FINE, "redis_version": "10.0.0"}, "", None),
        ({**FINE, "redis_version": "unknown"}, "", None),
        ({**FINE, "redis_version": "6.2.14"}, "", "version 6.2.14 is older than 7.0, the oldest that PodLink supports"),
        ({**FINE, "maxmemory_policy": "volatile-lru"}, "", "maxmemory-policy is volatile-lru, so it deletes links"),
        (KEEPS_NOTHING, "3600 1", None),
        (KEEPS_NOTHING, "", "it keeps nothing on disk (neither appendonly nor save is set), so a restart loses all"),
        (KEEPS_NOTHING, None, None),
        (NO_SNAPSHOT, None, "it wrote nothing to disk since it started 2 h ago (appendonly is not set), so a restart"),
        ({**NO_SNAPSHOT, "rdb_last_bgsave_time_sec": "0"}, None, None),
        ({**NO_SNAPSHOT, "uptime_in_seconds": "3599"}, None, None),
    ],
)
def test_only_what_is_known_to_be_wrong_is_told(info: dict[str, str], save: str | None, told: str | None) -> None:
    found = problems(info, save)
    assert len(found) == (told is not None)
    assert told is None or found[0].startswith(told)
