"""`podlink status` as people run it: with a Redis and without a cluster, into any kind of output."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sandbox.redis_servers import RedisServer

if TYPE_CHECKING:
    from collections.abc import Iterator

PODLINK = f"{sys.executable} -m podlink"
NO_USER = "unshare --user --map-user=54321"
"""Runs a command as a user without an entry in /etc/passwd."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with RedisServer() as server, server.client() as client:
        client.hset("sf:{games:state:lobby}", mapping={"0": "Ready", "1": "NotReady"})
        client.hset("sf:{games:state:lobby}load", "0", 12)
        client.set("sf:{games:workload:lobby}", "Degraded")
        client.set("sf:{games:state:taken}", "somebody else's")
        client.set("sf:{games:workload:taken}", "Available")
        client.set("sf:{games:workload:größe-玩}", "Available")
        yield server.url


def shell(command: str, home: Path | None, **environment: str) -> tuple[int, bytes, str]:
    """Exit code, stdout and stderr of a command of bash, with no way to a cluster; no home: none at all."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PODLINK_", "KUBE"))}
    kept.pop("HOME", None)
    homes = {"HOME": str(home)} if home else {}
    done = subprocess.run(
        ["bash", "-c", command], env={**kept, **homes, **environment}, capture_output=True, timeout=60, check=False
    )
    return done.returncode, done.stdout, done.stderr.decode()


def test_without_a_cluster_redis_is_shown_and_what_is_wrong_in_it_is_named(url: str, tmp_path: Path) -> None:
    code, out, err = shell(f"{PODLINK} status --redis-url {url}", tmp_path, PYTHONIOENCODING="latin-1")
    assert out.decode("latin-1").splitlines() == [
        r"service games/größe-\u73a9 Available",
        "service games/lobby Degraded 0=Ready(12) 1=NotReady(0)",
        "service games/taken Available",
    ]
    warnings = err.splitlines()
    assert warnings[0] == (
        "Warning: service games/taken is not shown in full: key sf:{games:state:taken} is a string instead of a hash;"
        " find out who wrote it and delete it"
    )
    assert warnings[1].startswith("Warning: only what Redis has is shown; there is no cluster to compare it with: ")
    assert "it keeps nothing on disk (neither appendonly nor save is set)" in warnings[2]
    assert (len(warnings), code) == (3, 1), "something was not read"

    code, _, err = shell(f"{PODLINK} status --redis-url {url} --namespace chat", tmp_path)
    assert code == 0, err


def test_an_api_server_that_does_not_answer_hides_nothing_of_redis(url: str, tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        "{current-context: c, contexts: [{name: c, context: {cluster: c}}],"
        " clusters: [{name: c, cluster: {server: 'https://127.0.0.1:1'}}]}"
    )
    code, out, err = shell(f"{PODLINK} status --redis-url {url}", tmp_path, KUBECONFIG=str(kubeconfig))
    assert b"service games/lobby Degraded 0=Ready(12) 1=NotReady(0)\n" in out
    assert "Warning: only what Redis has is shown: GET /apis/podlink.io/v1alpha1/podlinks: the API server cannot" in err
    assert code == 1


@pytest.mark.parametrize(
    ("command", "output", "told"),
    [
        ("--version", "> /dev/full", "Error: standard output cannot be written: No space left on device\n"),
        ("--version", ">&-", "Error: standard output cannot be written: Bad file descriptor\n"),
        (
            "status --namespace chat --redis-url {url}",
            ">&-",
            "Error: standard output cannot be written: Bad file descr",
        ),
        ("status --namespace games --redis-url {url}", "| true; exit ${{PIPESTATUS[0]}}", ""),
    ],
)
def test_output_that_cannot_be_written_is_a_sentence(
    url: str, tmp_path: Path, command: str, output: str, told: str
) -> None:
    code, _, err = shell(f"{PODLINK} {command} {output}".format(url=url), tmp_path)
    said = "".join(line for line in err.splitlines(keepends=True) if not line.startswith("Warning: "))
    assert (code, said[: len(told) or None]) == (1, told)


def test_a_user_without_a_name_and_a_home(url: str, tmp_path: Path) -> None:
    if shell(f"{NO_USER} true", None)[0] != 0:
        pytest.skip("this kernel lets nobody make a user namespace; sysctl user.max_user_namespaces would un-skip it")
    assert shell(f"{NO_USER} {PODLINK} --version", None)[0] == 0
    code, out, err = shell(f"{NO_USER} {PODLINK} status --redis-url {url}", None)
    assert (b"service games/lobby" in out, code) == (True, 1), err
    assert "no cluster: HOME is not set, and this is no pod with a service account; set KUBECONFIG" in err

    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        "{current-context: c, contexts: [{name: c, context: {cluster: c}}],"
        " clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}]}"
    )
    code, _, err = shell(f"{NO_USER} {PODLINK} run --http-port 0", None, KUBECONFIG=str(kubeconfig))
    assert err.splitlines()[-1] == (
        "Error: --data-dir: name a directory for the embedded Valkey; this user has no home directory"
    )
    assert code == 2
