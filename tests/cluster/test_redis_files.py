"""Redis settings in files, as a pod has them from Secrets: awaited, checked, and followed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from cluster.harness import Kube, Wire
from cluster.operators import Operator, start_operator
from sandbox.certificates import write_redis_certificates
from sandbox.processes import eventually, until
from sandbox.redis_servers import RedisServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sandbox.cluster import Cluster

PASSWORD = "s3cret/#@:"


@pytest.fixture(scope="module")
def guarded() -> Iterator[RedisServer]:
    with RedisServer(password=PASSWORD) as server:
        yield server


def plain(server: RedisServer) -> str:
    return f"redis://127.0.0.1:{server.port}/0"


def await_reason(operator: Operator, told: str) -> None:
    operator.await_reason(told)
    assert any(told in entry["message"] for entry in operator.log())


def test_a_missing_secret_is_named_and_awaited(
    cluster: Cluster, namespace: str, guarded: RedisServer, tmp_path: Path
) -> None:
    secret = tmp_path / "secrets" / "podlink-redis"
    file = secret / "url"
    with start_operator(cluster, "--namespace", namespace, PODLINK_REDIS_URL_FILE=str(file)) as operator:
        await_reason(
            operator, f"--redis-url-file {file} is not there: create the Secret 'podlink-redis' with the key 'url'"
        )
        secret.mkdir(parents=True)
        file.write_text("\n")
        await_reason(operator, f"--redis-url-file {file} is empty")
        file.write_text("http://nowhere")
        await_reason(operator, "--redis-url-file: url has the scheme 'http', which is not one of Redis")
        assert operator.healthz()[0] == 200
        file.write_text(f"{guarded.url}\n")
        operator.await_ready()
        assert not operator.faults()


def test_a_password_in_a_file_of_its_own(
    cluster: Cluster, namespace: str, guarded: RedisServer, tmp_path: Path
) -> None:
    file = tmp_path / "password"
    file.write_text(f"{PASSWORD}\n")
    flags = ["--redis-url", plain(guarded), "--redis-password-file", str(file), "--namespace", namespace]
    with (
        Kube(cluster, namespace) as kube,
        guarded.client() as client,
        start_operator(cluster, *flags) as operator,
    ):
        operator.await_start()
        operator.await_ready()
        kube.stateful_set("lobby", 1)
        eventually(Wire(client, namespace).states, {"0": "Ready"})
        assert PASSWORD not in operator.process.log_path.read_text()


def test_a_url_that_changes_ends_the_operator_in_order(
    cluster: Cluster, namespace: str, guarded: RedisServer, tmp_path: Path
) -> None:
    file = tmp_path / "url"
    file.write_text(guarded.url)
    with start_operator(cluster, "--redis-url-file", str(file), "--namespace", namespace) as operator:
        operator.await_start()
        operator.await_ready()
        file.write_text("http://nowhere")
        told = "--redis-url-file: url has the scheme 'http', which is not one of Redis"
        until(lambda: told in operator.process.log_path.read_text(), 60, "the log to say what is wrong with it")
        assert operator.readyz() == (200, "ok\n"), "the Redis of before is used"
        file.write_text(plain(guarded))
        assert operator.process.wait(30) == 0
        messages = [entry["message"] for entry in operator.log()]
        assert f"--redis-url-file {file} changed: the operator ends, to be started anew with it" in messages
        assert messages[-1] == "operator stopped"


def test_sigterm_ends_the_wait_for_a_file(cluster: Cluster, namespace: str, tmp_path: Path) -> None:
    flags = ["--redis-url-file", str(tmp_path / "never"), "--namespace", namespace]
    with start_operator(cluster, *flags) as operator:
        await_reason(operator, "is not there")
        assert operator.process.stop(grace_seconds=20) == 0


def test_tls_files(cluster: Cluster, namespace: str, tmp_path: Path) -> None:
    certificates = write_redis_certificates(tmp_path)
    certificate, key = certificates.of("client")
    flags = ["--redis-ca-file", certificates.authority, "--redis-cert-file", certificate, "--redis-key-file", key]
    with (
        RedisServer("redis", tls=certificates) as server,
        start_operator(
            cluster,
            *map(str, flags),
            "--namespace",
            namespace,
            PODLINK_REDIS_URL=f"rediss://127.0.0.1:{server.port}/0",
        ) as operator,
    ):
        operator.await_start()
        operator.await_ready()
        assert "PRIVATE KEY" not in json.dumps(operator.log())
