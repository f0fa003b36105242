"""What a kubeconfig means is what it means to kubectl; what PodLink cannot honour is refused with a sentence."""

from __future__ import annotations

import base64
import json
import os
import stat
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from aiohttp import web

from podlink.cluster import access
from podlink.cluster.access import Access, load_access
from podlink.cluster.client import Cluster
from podlink.cluster.credentials import fetch
from podlink.cluster.kubeconfig import ClusterAccessError, ClusterSettings, read_kubeconfig
from sandbox.certificates import write_certificates

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


def kubeconfig(
    name: str = "dev",
    *,
    cluster: dict[str, Any] | None = None,
    user: dict[str, Any] | None = None,
    current: str | None = None,
) -> dict[str, Any]:
    """A kubeconfig of one context, whose cluster and user have its name."""
    return {
        "current-context": name if current is None else current,
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "clusters": [{"name": name, "cluster": {"server": f"http://{name}:1", **(cluster or {})}}],
        "users": [{"name": name, "user": user or {}}],
    }


def settings(*contents: dict[str, Any] | str | None, directory: Path) -> ClusterSettings:
    """What these files say in that order; None is a file that is missing."""
    files = [directory / f"{number}.yaml" for number in range(len(contents))]
    for file, content in zip(files, contents, strict=True):
        if content is not None:
            file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    found = read_kubeconfig(files)
    assert found is not None
    return found.settings()


@pytest.mark.parametrize(
    ("contents", "server"),
    [
        ([kubeconfig("a"), kubeconfig("b")], "http://a:1"),
        ([kubeconfig("a", current=""), kubeconfig("b")], "http://b:1"),
        ([{"current-context": "b"}, kubeconfig("a"), kubeconfig("b")], "http://b:1"),
        ([None, "", "# nothing\n", kubeconfig("b")], "http://b:1"),
        ([kubeconfig("a"), kubeconfig("a", cluster={"server": "http://other:1"})], "http://a:1"),
        ([{"clusters": [{"name": "a", "cluster": {"server": "http://first:1"}}]}, kubeconfig("a")], "http://first:1"),
        ([{"clusters": None, "users": None, "contexts": None}, kubeconfig("a")], "http://a:1"),
    ],
    ids=["first-context", "empty-context", "context-apart", "missing-and-empty", "same-name", "cluster-apart", "nulls"],
)
def test_the_first_file_that_says_something_wins(contents: list[Any], server: str, tmp_path: Path) -> None:
    assert settings(*contents, directory=tmp_path).server == server


def test_paths_are_relative_to_the_file_that_they_stand_in(tmp_path: Path) -> None:
    write_certificates(tmp_path)
    (tmp_path / "users").mkdir()
    (tmp_path / "users" / "token").write_text("secret\n")
    user_file = tmp_path / "users" / "config"
    user_file.write_text(yaml.safe_dump({"users": [{"name": "a", "user": {"tokenFile": "token"}}]}))
    cluster_file = tmp_path / "config"
    cluster_file.write_text(
        yaml.safe_dump(kubeconfig("a", cluster={"server": "https://a:1", "certificate-authority": "ca.crt"}))
    )

    found = read_kubeconfig([user_file, cluster_file])
    assert found is not None
    read = found.settings()
    assert read.ca == (tmp_path / "ca.crt").read_text()
    assert fetch(read).authorization == "Bearer secret"


@pytest.mark.parametrize(
    ("server", "others", "url"),
    [
        ("https://h:6443/k8s/clusters/c-1/", {}, "https://h:6443/k8s/clusters/c-1"),
        ("h:8080", {}, "http://h:8080"),
        ("h:6443", {"insecure-skip-tls-verify": True}, "https://h:6443"),
    ],
)
def test_the_server_is_what_kubectl_makes_of_it(server: str, others: dict[str, Any], url: str, tmp_path: Path) -> None:
    assert settings(kubeconfig(cluster={"server": server, **others}), directory=tmp_path).server == url


@pytest.mark.parametrize(
    ("cluster", "user", "told"),
    [
        ({"server": ""}, {}, "cluster 'dev', field server: it is empty"),
        ({"server": "ftp://h"}, {}, "cluster 'dev', field server: 'ftp://h' cannot be used; give a URL that begins"),
        ({"proxy-url": "socks5://p:1"}, {}, "field proxy-url: 'socks5://p:1' cannot be used"),
        ({"certificate-authority": "gone.crt"}, {}, "field certificate-authority: {directory}/gone.crt cannot be read"),
        ({"certificate-authority-data": "%"}, {}, "field certificate-authority-data: it is not PEM text in base64"),
        (
            {"insecure-skip-tls-verify": True, "certificate-authority-data": "eA=="},
            {},
            "field insecure-skip-tls-verify: it is true beside a certificate-authority; remove one of the two",
        ),
        ({}, {"client-certificate-data": "eA=="}, "user 'dev', field client-key: it is missing beside client-cert"),
        ({}, {"token": "t", "username": "u", "password": "p"}, "field username: there is a token too"),
        ({}, {"auth-provider": {"name": "oidc"}}, "field auth-provider: oidc is not supported; use an exec plugin"),
        ({}, {"as-groups": ["ops"]}, "field as: it is missing beside as-uid, as-groups or as-user-extra"),
        ({}, {"exec": {"apiVersion": "client.authentication.k8s.io/v1"}}, "field exec.command: it is empty"),
        (
            {},
            {"exec": {"command": "x", "apiVersion": "client.authentication.k8s.io/v1alpha1"}},
            "field exec.apiVersion",
        ),
        (
            {},
            {"exec": {"command": "x", "apiVersion": "client.authentication.k8s.io/v1"}},
            "exec.interactiveMode: it is",
        ),
        ({"server": 1}, {}, "is not a kubeconfig: Expected `str`, got `int` - at `$.clusters[0].cluster.server`"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_field_context_and_file(
    cluster: dict[str, Any], user: dict[str, Any], told: str, tmp_path: Path
) -> None:
    with pytest.raises(ClusterAccessError) as raised:
        settings(kubeconfig(cluster=cluster, user=user), directory=tmp_path)
    text = str(raised.value)
    assert text.startswith(f"kubeconfig {tmp_path}/0.yaml")
    assert "is not a kubeconfig" in text or ", context 'dev', " in text
    assert told.format(directory=tmp_path) in text


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (kubeconfig("a", current=""), "current-context is not set; choose one: kubectl config use-context NAME"),
        (kubeconfig("a", current="b"), "current-context is 'b', which is not in contexts (there: a)"),
        ({**kubeconfig("a"), "clusters": []}, "field cluster is 'a', which is not in clusters (there: none)"),
        ({**kubeconfig("a"), "users": []}, "field user is 'a', which is not in users (there: none)"),
        ({**kubeconfig("a"), "users": 2 * [{"name": "a"}]}, "users has two entries of the name 'a'; remove one"),
        ("a word", "is not a kubeconfig: Expected `object`, got `str`"),
        ("clusters: [", "is not YAML: while parsing a flow node"),
    ],
)
def test_a_kubeconfig_that_does_not_add_up_is_refused(content: Any, told: str, tmp_path: Path) -> None:
    with pytest.raises(ClusterAccessError) as raised:
        settings(content, directory=tmp_path)
    assert told in str(raised.value)


@pytest.fixture
async def echo() -> AsyncIterator[str]:
    """The URL of a server that answers with the headers of the request, as a namespace's annotations."""

    async def answer(request: web.Request) -> web.Response:
        return web.json_response({"headers": [[name.lower(), value] for name, value in request.headers.items()]})

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield "http://{}:{}".format(*runner.addresses[0][:2])
    await runner.cleanup()


async def headers(server: str, user: dict[str, Any], directory: Path, **cluster: Any) -> list[tuple[str, str]]:
    """The headers of a request by that user."""
    read = settings(kubeconfig(user=user, cluster={"server": server, **cluster}), directory=directory)
    client = await Cluster.connect(Access(lambda: read))
    try:
        return [(name, value) for name, value in (await client.read_namespace("x"))["headers"]]
    finally:
        await client.aclose()


async def test_logins_and_impersonation_are_sent(echo: str, tmp_path: Path) -> None:
    sent = await headers(echo, {"username": "me", "password": "hunter2"}, tmp_path)
    assert ("authorization", "Basic " + base64.b64encode(b"me:hunter2").decode()) in sent

    (tmp_path / "token").write_text("from-file\n")
    sent = await headers(echo, {"token": "t", "tokenFile": "token"}, tmp_path)
    assert ("authorization", "Bearer from-file") in sent, "as kubectl: the file goes first"
    (tmp_path / "token").unlink()
    assert ("authorization", "Bearer t") in await headers(echo, {"token": "t", "tokenFile": "token"}, tmp_path)

    somebody = {
        "as": "ann",
        "as-uid": "7",
        "as-groups": ["ops", "dev"],
        "as-user-extra": {"example.com/Scope": ["all"]},
    }
    sent = await headers(echo, somebody, tmp_path, **{"disable-compression": True})
    assert sorted(each for each in sent if each[0].startswith(("impersonate", "accept-encoding"))) == [
        ("accept-encoding", "identity"),
        ("impersonate-extra-example.com%2fscope", "all"),
        ("impersonate-group", "dev"),
        ("impersonate-group", "ops"),
        ("impersonate-uid", "7"),
        ("impersonate-user", "ann"),
    ]
    assert not [each for each in sent if each[0] == "authorization"]


VERSION = "client.authentication.k8s.io/v1"


def plugin(directory: Path, script: str, **fields: Any) -> dict[str, Any]:
    """A user whose plugin is this Python text, in a file beside the kubeconfig."""
    file = directory / "plugin"
    file.write_text(f"#!{sys.executable}\n{script}")
    file.chmod(stat.S_IRWXU)
    return {"exec": {"command": "./plugin", "apiVersion": VERSION, "interactiveMode": "Never", **fields}}


def prints(status: str, **fields: str) -> str:
    answer = {"apiVersion": VERSION, "kind": "ExecCredential", **fields}
    return f"print('{json.dumps(answer)[:-1]}, \"status\": {status}}}')"


async def test_a_plugin_is_run_again_when_its_token_expires(echo: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    soon = (datetime.now(UTC) + timedelta(seconds=5)).isoformat()  # sooner than a login is renewed ahead of its end
    script = (
        "import os, sys, json\n"
        f"open({str(log)!r}, 'a').write(os.environ['KUBERNETES_EXEC_INFO'] + '\\n')\n"
        f"number = len(open({str(log)!r}).readlines())\n"
        "token = f'{sys.argv[1]}-{os.environ[\"WHO\"]}-{number}'\n"
        f"expires = {soon!r} if number < 3 else '2999-01-01T00:00:00Z'\n"
        "status = {'token': token, 'expirationTimestamp': expires}\n"
        f"print(json.dumps({{'apiVersion': {VERSION!r}, 'kind': 'ExecCredential', 'status': status}}))\n"
    )
    user = plugin(tmp_path, script, args=["t"], env=[{"name": "WHO", "value": "me"}], provideClusterInfo=True)
    extension = {"name": "client.authentication.k8s.io/exec", "extension": {"region": "eu"}}
    cluster = {"server": echo, "extensions": [extension], "tls-server-name": "api"}
    read = settings(kubeconfig(user=user, cluster=cluster), directory=tmp_path)
    client = await Cluster.connect(Access(lambda: read))
    tokens = [dict((await client.read_namespace("x"))["headers"])["authorization"] for _ in range(3)]
    await client.aclose()

    assert tokens == ["Bearer t-me-2", "Bearer t-me-3", "Bearer t-me-3"], "one login to open, then until it lasts"
    assert json.loads(log.read_text().splitlines()[0]) == {
        "apiVersion": VERSION,
        "kind": "ExecCredential",
        "spec": {
            "interactive": False,
            "cluster": {"server": echo, "tls-server-name": "api", "config": {"region": "eu"}},
        },
    }


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("import sys; sys.exit('no network\\nhere')", "plugin: it ended with exit code 1: no network here"),
        ("print('hello')", "plugin: what it printed is no ExecCredential: JSON is malformed"),
        (prints("{}"), "plugin: it printed neither a token nor a client certificate"),
        (prints('{"token": "t"}', apiVersion="v2"), "plugin: it printed ExecCredential of v2 instead of"),
        (prints('{"clientCertificateData": "x"}'), "it printed only one of clientCertificateData and clientKeyData"),
    ],
)
def test_a_plugin_that_fails_is_named_with_what_it_said(script: str, told: str, tmp_path: Path) -> None:
    read = settings(kubeconfig(user=plugin(tmp_path, script)), directory=tmp_path)
    with pytest.raises(ClusterAccessError) as raised:
        fetch(read)
    where = f"kubeconfig {tmp_path}/0.yaml, context 'dev', user 'dev', field exec: {tmp_path}/"
    assert str(raised.value).startswith(where)
    assert told in str(raised.value)


def test_a_plugin_that_is_not_installed_is_told_with_its_hint(tmp_path: Path) -> None:
    user = {
        "exec": {"command": "gone-login", "apiVersion": VERSION, "interactiveMode": "Never", "installHint": "get it"}
    }
    with pytest.raises(ClusterAccessError, match=r"gone-login: it cannot be started: No such file .* \(get it\)"):
        fetch(settings(kubeconfig(user=user), directory=tmp_path))


def test_a_plugin_that_must_ask_is_refused_where_nobody_can_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Path(os.devnull).open() as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        with pytest.raises(ClusterAccessError, match="it asks its user, and standard input is no terminal"):
            fetch(settings(kubeconfig(user=plugin(tmp_path, "", interactiveMode="Always")), directory=tmp_path))


def test_a_pod_s_service_account_is_used_where_the_kubeconfig_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_certificates(tmp_path)
    (tmp_path / "token").write_text("t")
    (tmp_path / ".kube").mkdir()
    (tmp_path / ".kube" / "config").touch()
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(access, "_SERVICE_ACCOUNT", tmp_path / "token")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")

    found = load_access()._settings
    assert (found.server, found.token_file) == ("https://[fd00::1]:443", tmp_path / "token")
    assert found.ca == (tmp_path / "ca.crt").read_text()
