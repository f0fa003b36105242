"""Compiles every Lua script as the server does, for `make check`: not every machine has luac, and its rules differ."""

from __future__ import annotations

import sys

import redis

from sandbox.cluster import REPOSITORY
from sandbox.redis_servers import RedisServer


def main() -> None:
    """Exit with the scripts that do not compile, and the server's words on each."""
    scripts = sorted((REPOSITORY / "lua").glob("*.lua"))
    with RedisServer("valkey") as server, server.client() as client:
        failures = []
        for script in scripts:
            try:
                client.script_load(script.read_text())
            except redis.ResponseError as error:
                failures.append(f"lua/{script.name}: {error}")
    sys.exit("\n".join(failures) or None)


if __name__ == "__main__":
    main()
