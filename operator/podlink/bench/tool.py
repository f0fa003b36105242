"""redis-benchmark, the tool that comes with the server: a client in C that does nothing with a reply."""

import csv
import shutil
import subprocess
from typing import Final

from podlink.bench.plan import CONNECTIONS, NotMeasuredError, Plan, link_request, read_request
from podlink.store.batching.exchange import Request

_NAMES: Final = ("redis-benchmark", "valkey-benchmark")
_ANY_USER: Final = "__rand_int__"
_PATIENCE_SECONDS: Final = 30
_TRIAL: Final = 2000


def link_rate(plan: Plan, depth: int) -> float:
    """Link calls a second over 50 connections, `depth` in flight on each."""
    return _rate(plan, depth, link_request(plan, _ANY_USER))


def read_rate(plan: Plan) -> float:
    """Reads a second over 50 connections, one in flight on each."""
    return _rate(plan, 1, read_request(plan, _ANY_USER))


def _rate(plan: Plan, depth: int, request: Request) -> float:
    # It takes a number of requests and no time, so a trial tells how many take as long as wanted.
    trial = _TRIAL * (10 if depth > 1 else 1)
    guess = _run(plan, depth, request, trial)
    return _run(plan, depth, request, max(trial, int(guess * plan.seconds)))


def _run(plan: Plan, depth: int, request: Request, count: int) -> float:
    server = plan.server
    if plan.encrypted:
        raise NotMeasuredError("redis-benchmark is not measured over TLS")
    if server.get("password"):
        raise NotMeasuredError("redis-benchmark takes a password only where every user of the machine can read it")
    if "path" in server:
        place = ["-s", server["path"]]
    else:
        place = ["-h", server.get("host", "localhost"), "-p", str(server.get("port", 6379))]
    argv = [
        *(_path(), *place, "--dbnum", str(server.get("db", 0)), "--csv"),
        *("-c", str(CONNECTIONS), "-P", str(depth), "-n", str(count), "-r", str(plan.links)),
        *map(str, request),
    ]
    try:
        done = subprocess.run(  # noqa: S603 - the tool of that name on PATH
            argv, capture_output=True, text=True, timeout=plan.seconds * 10 + _PATIENCE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise NotMeasuredError("redis-benchmark did not end in time") from None
    rows = list(csv.DictReader(done.stdout.splitlines()))
    if done.returncode != 0 or not rows or "rps" not in rows[0]:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise NotMeasuredError(f"redis-benchmark: {said}")
    return float(rows[0]["rps"])


def _path() -> str:
    for path in map(shutil.which, _NAMES):
        if path:
            return path
    raise NotMeasuredError("no redis-benchmark on PATH; it comes with redis-server")
