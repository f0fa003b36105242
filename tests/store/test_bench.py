"""`podlink bench` on real servers: every row is there, nothing stays behind, and what cannot be measured says why."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest

from podlink.bench import server as bench_server
from podlink.bench.figures import FIGURES, ONCE, TARGETS
from podlink.bench.plan import Plan
from podlink.domain import keys
from podlink.store.batching.merging import BATCH_SIZE
from podlink.store.operations import scripts
from podlink.store.operations.base import PICK_WEIGHT
from sandbox.processes import until
from sandbox.redis_cluster import ClusterSet
from store.harness import Topology, Wire

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import redis

    from sandbox.redis_servers import RedisServer


TINY = ["--rounds", "2", "--seconds", "0.01", "--links", "1000", "--memory-links", "1000"]


def bench(url: str, *flags: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*flags), env=environment(url), capture_output=True, text=True, check=False)


def command(*flags: object) -> list[str]:
    return [sys.executable, "-m", "podlink", "bench", *map(str, (*TINY, *flags))]


def environment(url: str) -> dict[str, str]:
    return {**os.environ, "PODLINK_REDIS_URL": url}


def error_of(done: subprocess.CompletedProcess[str]) -> str:
    """The one sentence on stderr."""
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.only_on("redis", reason="one server is enough to see a program at work")
def test_every_figure_is_in_table_json_chart_and_page(server: RedisServer, raw: redis.Redis, tmp_path: Path) -> None:
    raw.set("somebody's", "own")
    figures, chart = tmp_path / "figures.json", tmp_path / "chart.svg"

    done = bench(server.url, "--json", figures, "--chart", chart, "--docs", tmp_path)

    assert done.returncode == 0, done.stderr
    assert raw.keys() == ["somebody's"]
    assert "not measured" not in done.stdout
    found = json.loads(figures.read_bytes())
    assert [each["name"] for each in found["figures"]] == [figure.name for figure in FIGURES]
    for figure, measured in zip(FIGURES, found["figures"], strict=True):
        assert len(measured["rounds"]) == (1 if figure.contender in ONCE else 2), figure.name
        assert min(measured["rounds"]) > 0, figure.name
    assert [(each["over"], each["under"]) for each in found["targets"]] == [(each.over, each.under) for each in TARGETS]
    assert {each["met"] for each in found["targets"]} <= {True, False}
    assert found["server"]["name"] == {"redis": "Redis", "valkey": "Valkey"}[server.kind]
    assert found["machine"]["cores"] >= 1
    assert all(found["machine"][name] for name in ("cpu", "system", "python"))
    page = (tmp_path / "benchmarks.md").read_text()
    drawn = set(ET.fromstring(chart.read_text()).itertext())  # noqa: S314 - our own
    for figure in FIGURES:
        assert f"  {figure.title} " in done.stdout
        assert f"| {figure.title} |" in page
        assert (figure.title in drawn) == (figure.unit == "calls/s")
    assert (tmp_path / "bench.svg").read_text() == chart.read_text()
    assert json.loads((tmp_path / "bench.json").read_bytes()) == found


@pytest.mark.only_on("valkey", reason="one server is enough to see a program at work")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_nothing(
    server: RedisServer, raw: redis.Redis, tmp_path: Path, number: signal.Signals
) -> None:
    raw.set("somebody's", "own")
    flags = ["--seconds", 10, "--only", "podlink-50", "--only", "raw-pipeline"]
    with (tmp_path / "log").open("w") as log:
        running = subprocess.Popen(command(*flags), env=environment(server.url), stdout=log, stderr=log)
    try:
        until(lambda: Wire(raw).calls_of("evalsha"), 60, "links to be written")
        until(lambda: "round 1" in (tmp_path / "log").read_text(), 60, "the first round")
        # In the middle of it: its connections are there.
        until(lambda: len(raw.client_list()) > 2, 60, "a contender at work")
        running.send_signal(number)
        assert running.wait(60) == 130
    finally:
        running.kill()
        running.wait()

    assert raw.keys() == ["somebody's"]
    until(lambda: len(raw.client_list()) == 1, 10, "its connections to be gone")
    assert raw.keys() == ["somebody's"]
    assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.mark.only_on("valkey", reason="one server is enough to see a program at work")
def test_only_what_is_asked_for(server: RedisServer, raw: redis.Redis) -> None:
    done = bench(server.url, "--only", "podlink-50", "--only", "raw-get")

    assert done.returncode == 0
    table = done.stdout.split("target\n")[1]
    assert [line.strip().split("  ")[0] for line in table.splitlines() if line.startswith("  ")] == [
        "PodLink, 50 tasks",
        "plain socket, GET packed in advance",
    ]


def test_every_batch_whose_time_is_taken_is_full(own_server: Callable[..., RedisServer]) -> None:
    server = own_server()
    plan = Plan(server.url, "podlink-bench-full", links=1000, memory_links=0, seconds=0.05)
    bench_server.fill(plan)
    with server.client() as client:
        client.config_set("slowlog-max-len", 100_000)
        client.config_set("slowlog-log-slower-than", 0)
        figures = bench_server.blocked(plan)
        calls = client.slowlog_get(100_000)

    # Of each call of the batch, which script it runs how often, and for how many microseconds.
    run = re.compile(rf"EVAL(?:SHA)? .* (\d+) \d \d \d \d \d (\d+) {re.escape(keys.link_head(plan.namespace))} ")
    taken: dict[tuple[str, int], list[int]] = {}
    for each in calls:
        if found := run.match(each["command"].decode()):
            taken.setdefault((found[1], int(found[2])), []).append(each["duration"])
    links = scripts.NUMBERS[scripts.SET_LINK.name], BATCH_SIZE
    computes = scripts.NUMBERS[scripts.COMPUTE_LINK_IF_ABSENT.name], BATCH_SIZE // PICK_WEIGHT
    assert set(taken) == {links, computes, (scripts.NUMBERS[scripts.REMOVE_LINK.name], BATCH_SIZE)}
    assert min(taken[links]) <= figures["blocked-links"] <= max(taken[links])
    assert min(taken[computes]) <= figures["blocked-computes"] <= max(taken[computes])


@pytest.mark.only_on("cluster", reason="it is the one that is refused")
def test_a_node_of_a_cluster_is_refused(server: Topology, raw: redis.Redis) -> None:
    assert isinstance(server, ClusterSet)

    done = bench(server.servers[0].url)

    assert done.returncode == 1
    assert error_of(done) == (
        "Error: the bench measures one server, and this is a node of a Redis Cluster:"
        " give the URL of a server with cluster-enabled no"
    )
    assert raw.keys() == []


@pytest.mark.parametrize("command", ["info", "unlink"])
def test_a_user_that_may_not_do_all_it_takes_is_refused(own_server: Callable[..., RedisServer], command: str) -> None:
    server = own_server(users={"gate": f"on >secret ~* +@all -{command}"})

    done = bench(server.url_as("gate", "secret"))

    assert done.returncode == 1
    told = error_of(done)
    assert told.startswith("Error: the server refuses what the bench needs: ")
    assert f"'{command}'" in told
    assert told.endswith("; give one, and a user, that allow every command on keys sf:{podlink-bench-*")
    with server.client() as client:
        assert client.keys() == []


def test_a_replica_is_refused(own_server: Callable[..., RedisServer]) -> None:
    server = own_server()
    with server.client() as client:
        client.replicaof("127.0.0.1", 1)

    done = bench(server.url)

    assert done.returncode == 1
    assert error_of(done).startswith("Error: set_service_state: Redis cannot serve now: ")
    assert "read only replica" in done.stderr


def test_nobody_there() -> None:
    done = bench("redis://127.0.0.1:1")

    assert done.returncode == 1
    assert error_of(done).startswith("Error: ping: Redis is unreachable: ")


def test_a_password_is_needed_and_never_told(own_server: Callable[..., RedisServer], tmp_path: Path) -> None:
    server = own_server(password="hunter2")

    missing = bench(f"redis://127.0.0.1:{server.port}")
    assert missing.returncode == 1
    assert error_of(missing).startswith("Error: ping: Redis refused the user name or the password: ")
    wrong = bench(f"redis://:hunter3@127.0.0.1:{server.port}")
    assert wrong.returncode == 1
    assert error_of(wrong).startswith("Error: ping: Redis refused the user name or the password: ")
    assert "hunter3" not in wrong.stderr

    flags = [word for name in ("redis-benchmark", "raw-single", "redis-py", "podlink-50") for word in ("--only", name)]
    right = bench(server.url, *flags, "--docs", tmp_path)
    assert right.returncode == 0, right.stderr
    written = [path.read_text() for path in tmp_path.iterdir()]
    assert not any("hunter2" in text for text in (right.stdout, right.stderr, *written))
    assert [line.split("  ")[1] for line in right.stdout.splitlines() if "not measured" in line] == [
        "redis-benchmark EVALSHA, P1 c50",
        "… to redis-benchmark",
    ]
    assert "takes a password only where every user of the machine can read it" in right.stdout


@pytest.mark.only_on("redis", reason="one server is enough to see a program at work")
def test_without_redis_benchmark_its_rows_say_so(server: RedisServer, raw: redis.Redis, tmp_path: Path) -> None:
    path = {"PATH": str(tmp_path)}
    flags = ["--only", "redis-benchmark", "--only", "podlink-50"]
    done = subprocess.run(
        command(*flags), env=environment(server.url) | path, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert "not measured" in done.stdout
    assert "no redis-benchmark on PATH; it comes with redis-server" in done.stdout


def test_a_server_without_room_is_left_alone(own_server: Callable[..., RedisServer]) -> None:
    server = own_server()
    with server.client() as client:
        client.config_set("maxmemory", "3mb")
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.set("somebody's", "own")

        done = bench(server.url, "--links", "100000")

        assert done.returncode == 1
        assert error_of(done).startswith("Error: the server may use 3,145,728 bytes of memory and has no room for ")
        assert client.keys() == ["somebody's"]


def test_a_server_that_dies_in_the_middle(own_server: Callable[..., RedisServer], tmp_path: Path) -> None:
    server = own_server()
    flags = ["--seconds", 10, "--only", "podlink-50"]
    with (tmp_path / "log").open("w") as log:
        running = subprocess.Popen(command(*flags), env=environment(server.url), stdout=log, stderr=log)
    try:
        until(lambda: "round 1" in (tmp_path / "log").read_text(), 60, "the first round")
        server.kill()
        assert running.wait(60) == 1
    finally:
        running.kill()
        running.wait()

    (told,) = [line for line in (tmp_path / "log").read_text().splitlines() if line.startswith("Error: ")]
    assert told.startswith("Error: keys sf:{podlink-bench-")
    assert " could not be removed: " in told


@pytest.mark.parametrize(
    ("flags", "code", "told"),
    [
        (["--json", "/nowhere/at/all.json"], 1, "Error: /nowhere/at/all.json cannot be written: /nowhere/at is no "),
        (["--redis-url", ""], 2, "url has no scheme"),
        (["--chart", __file__ + "/x.svg"], 1, f"x.svg cannot be written: {__file__} is no directory "),
        (["--json", "/"], 2, "'--json': File '/' is a directory."),
        (["--only", "podlink-5"], 2, "'podlink-5' is not one of "),
        (["--seconds", "nan"], 2, "'--seconds': nan is no number: give one, such as 1"),
        (["--seconds", "inf"], 2, "'--seconds': inf is not in the range 0.001<=x<=60."),
    ],
)
def test_what_cannot_be_used_is_refused_at_once(flags: list[str], code: int, told: str) -> None:
    done = bench("redis://127.0.0.1:1", *flags)

    assert done.returncode == code
    assert told in done.stderr.splitlines()[-1]


def test_a_file_that_cannot_be_written_is_told_of_at_once(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    kept.write_text("{}")
    kept.chmod(0o444)
    # root may write to any file, so it gives that up.
    may_not = ["setpriv", "--bounding-set=-dac_override"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*may_not, *command("--json", kept)],
        env=environment("redis://127.0.0.1:1"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    told = f"Error: {kept} cannot be written: it is there and read-only; remove it, or name another place"
    assert error_of(done) == told

    directory = tmp_path / "bench.json"
    directory.mkdir()
    done = bench("redis://127.0.0.1:1", "--docs", tmp_path)
    assert done.returncode == 1
    told = f"Error: {directory} cannot be written: it is a directory; remove it, or name another place"
    assert error_of(done) == told


@pytest.mark.only_on("redis", reason="one server is enough to see a program at work")
def test_a_disk_that_is_full_takes_no_figures_away(server: RedisServer, raw: redis.Redis) -> None:
    done = bench(server.url, "--only", "podlink-50", "--json", "/dev/full")

    assert done.returncode == 1
    assert "PodLink, 50 tasks" in done.stdout
    assert done.stderr.splitlines()[-1] == "Error: /dev/full could not be written: No space left on device"


def test_somewhere_to_measure_is_needed() -> None:
    bare = {name: value for name, value in os.environ.items() if name != "PODLINK_REDIS_URL"}
    done = subprocess.run(command(), env=bare, capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "Error: give --redis-url or set PODLINK_REDIS_URL: the Redis to measure"
