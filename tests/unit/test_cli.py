"""What the command `podlink` says to what it cannot use: one sentence, exit code 2, no traceback."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from podlink import __version__, cli

if TYPE_CHECKING:
    from collections.abc import Mapping

REDIS = "'--redis-url' (env var: 'PODLINK_REDIS_URL'): "
SCHEMES = "use redis://host:port/db, rediss://host:port/db or unix:///path/to/socket"
NAMESPACE = "'--namespace' / '-n' (env var: 'PODLINK_NAMESPACE'): "
NAME = "is no namespace name: use lower-case letters, digits and '-', at most 63 characters"
RESYNC = "'--resync-seconds' (env var: 'PODLINK_RESYNC_SECONDS'): "
RECOUNT = "'--recount-seconds' (env var: 'PODLINK_RECOUNT_SECONDS'): "
PORT = "'--http-port' (env var: 'PODLINK_HTTP_PORT'): "


def run_main(monkeypatch: pytest.MonkeyPatch, arguments: list[str], environment: Mapping[str, str] = {}) -> int:
    """Run the command in this process; return its exit code."""
    for name in [name for name in os.environ if name.startswith("PODLINK_")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["podlink", *arguments])
    try:
        cli.main()
    except SystemExit as finished:
        return int(finished.code or 0)
    return 0


@pytest.mark.parametrize(
    ("flag", "variable", "value", "told"),
    [
        ("--redis-url", "PODLINK_REDIS_URL", "http://h:1", f"{REDIS}url has the scheme 'http', which is not one of"),
        ("--redis-url", "PODLINK_REDIS_URL", "localhost:6379", SCHEMES),
        ("--redis-url", "PODLINK_REDIS_URL", "redis://h:port", f"{REDIS}url cannot be read as a Redis URL: {SCHEMES}"),
        ("--redis-url", "PODLINK_REDIS_URL", "redis://h:1/x", f"{REDIS}url names the database 'x', which is no number"),
        ("--namespace", "PODLINK_NAMESPACE", "Games", f"{NAMESPACE}'Games' {NAME}"),
        ("--namespace", "PODLINK_NAMESPACE", "-a", f"{NAMESPACE}'-a' {NAME}"),
        ("--namespace", "PODLINK_NAMESPACE", "a" * 64, NAME),
        ("--namespace", "PODLINK_NAMESPACE", "a:b", f"{NAMESPACE}'a:b' {NAME}"),
        ("--resync-seconds", "PODLINK_RESYNC_SECONDS", "0", f"{RESYNC}0 is not in the range 1<=x<=86400."),
        ("--resync-seconds", "PODLINK_RESYNC_SECONDS", "soon", f"{RESYNC}'soon' is not a valid integer"),
        ("--resync-seconds", "PODLINK_RESYNC_SECONDS", "nan", f"{RESYNC}'nan' is not a valid integer"),
        ("--recount-seconds", "PODLINK_RECOUNT_SECONDS", "-1", f"{RECOUNT}-1 is not in the range 0<=x<=604800."),
        ("--recount-seconds", "PODLINK_RECOUNT_SECONDS", "1h", f"{RECOUNT}'1h' is not a valid integer"),
        ("--http-port", "PODLINK_HTTP_PORT", "65536", f"{PORT}65536 is not in the range 0<=x<=65535."),
        ("--http-port", "PODLINK_HTTP_PORT", "http", f"{PORT}'http' is not a valid integer"),
        ("--lease-namespace", "PODLINK_LEASE_NAMESPACE", "Games", f"'Games' {NAME}"),
        ("--lease-name", "PODLINK_LEASE_NAME", "Lease!", "'Lease!' is no name of an object: use lower-case letters"),
        ("--redis-url-file", "PODLINK_REDIS_URL_FILE", "/", "'PODLINK_REDIS_URL_FILE'): File '/' is a directory."),
        ("--log-level", "PODLINK_LOG_LEVEL", "loud", "'loud' is not one of 'debug', 'info', 'warning', 'error'."),
        ("--log-format", "PODLINK_LOG_FORMAT", "xml", "'PODLINK_LOG_FORMAT'): 'xml' is not one of 'text', 'json'."),
        ("--data-dir", "PODLINK_DATA_DIR", __file__, f"'PODLINK_DATA_DIR'): Directory '{__file__}' is a file."),
    ],
)
@pytest.mark.parametrize("given_by", ["flag", "variable"])
def test_a_bad_value_is_refused_by_the_names_of_flag_and_variable(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    given_by: str,
    flag: str,
    variable: str,
    value: str,
    told: str,
) -> None:
    arguments, environment = ([flag, value], {}) if given_by == "flag" else ([], {variable: value})

    assert run_main(monkeypatch, ["run", *arguments], environment) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Error: Invalid value for " in err
    assert told in err


def test_a_refused_redis_url_keeps_its_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for url in ("http://user:hunter2@h:1", "redis://user:hunter2@h:port", "user:hunter2@h:1"):
        assert run_main(monkeypatch, ["run", "--redis-url", url]) == 2
        assert "hunter2" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["link"], "No such command 'link'."),
        (["run", "--redis", "x"], "No such option '--redis'."),
        (["run", "lobby"], "Got unexpected extra argument (lobby)"),
        (
            ["run", "--redis-url", "redis://h", "--redis-url-file", "url"],
            "give --redis-url or --redis-url-file, not both",
        ),
        (
            ["run", "--redis-ca-file", "ca.crt"],
            "--redis-ca-file is about a Redis, and none is named: give --redis-url or",
        ),
        (["run", "--redis-username", "gate"], "--redis-username is about a Redis, and none is named"),
        (["status", "--redis-url-file", "gone"], "--redis-url-file gone is not there: write it, or name another file"),
        (["status"], "give --redis-url or --redis-url-file: the Redis that the operator writes to"),
        (["release"], "give either --namespace or --all-namespaces"),
        (["release", "--namespace", "games", "--all-namespaces"], "give either --namespace or --all-namespaces"),
        (["release", "--namespace", "games"], "the Redis that the operator wrote to, or else --keep-links"),
        (["release", "-A", "--keep-links", "--redis-url", "redis://h"], "or else --keep-links"),
    ],
)
def test_a_bad_command_line_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    assert run_main(monkeypatch, arguments) == 2
    assert told in capsys.readouterr().err


def test_every_flag_has_a_variable(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(monkeypatch, ["run", "--help"]) == 0

    described = " ".join(capsys.readouterr().out.split())
    flags = [option.opts[0] for option in cli.run.params]
    assert {"--redis-url", "--redis-password-file", "--leader-elect", "--tracing", "--log-format"} <= set(flags)
    for flag in flags:
        assert f"{flag} " in described or f"{flag} / " in described
        assert f"env var: PODLINK_{flag.removeprefix('--').upper().replace('-', '_')}" in described


@pytest.mark.parametrize(
    ("arguments", "variable", "selector"),
    [
        ([], None, "apps.kubernetes.io/pod-index"),
        ([], "", ""),
        ([], "app=x", "app=x"),
        (["--pod-selector", "app=y"], "", "app=y"),
        (["--pod-selector", ""], "app=x", ""),
    ],
)
def test_an_empty_selector_is_all_pods_by_flag_and_by_variable(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], variable: str | None, selector: str
) -> None:
    if variable is not None:
        monkeypatch.setenv("PODLINK_POD_SELECTOR", variable)
    assert cli.run.make_context("run", arguments).params["pod_selector"] == selector


@pytest.mark.parametrize("command", ["podlink", "kubectl-podlink"])
def test_the_command_is_installed_by_both_names(command: str) -> None:
    program = shutil.which(command, path=Path(sys.executable).parent)
    assert program is not None
    answer = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)

    assert answer.stdout == f"podlink, version {__version__}\n"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "KUBECONFIG={path} has no content: set it to a kubeconfig file, or unset it"),
        (b"a word", "kubeconfig {path} is not a kubeconfig: Expected `object`, got `str`"),
        (b"\xff\xfe\x00", "kubeconfig {path} is not YAML: "),
    ],
    ids=["missing", "no-mapping", "binary"],
)
def test_a_kubeconfig_that_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    content: bytes | None,
    told: str,
) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    if content is not None:
        kubeconfig.write_bytes(content)

    arguments = ["status", "--redis-url", "redis://127.0.0.1:1"]
    assert run_main(monkeypatch, arguments, {"KUBECONFIG": str(kubeconfig)}) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"Error: {told.format(path=kubeconfig)}")
    assert len(err.splitlines()) == 1


def run_operator(kubeconfig: Path | None, *flags: str, home: Path | None = None) -> tuple[int, str]:
    """Start `podlink run` with that KUBECONFIG; return its exit code and what it wrote to stderr."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PODLINK_", "KUBE"))}
    if kubeconfig:
        environment["KUBECONFIG"] = str(kubeconfig)
    if home:
        environment["HOME"] = str(home)
    argv = [sys.executable, "-m", "podlink", "run", "--redis-url", "redis://127.0.0.1:1/0", *flags]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


@pytest.mark.skipif(
    Path("/var/run/secrets/kubernetes.io/serviceaccount/token").exists(),
    reason="this is a pod with a service account, so there is a cluster; another machine would un-skip it",
)
def test_without_any_kubeconfig(tmp_path: Path) -> None:
    code, err = run_operator(None, home=tmp_path)

    assert code == 2
    assert err == (
        f"Error: no cluster: {tmp_path}/.kube/config does not exist, and this is no pod with a service account; "
        "set KUBECONFIG to a kubeconfig file\n"
    )


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    # Nobody answers there: a cluster that is away for the moment keeps no operator from starting.
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        "{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c, user: c}}],"
        " clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}], users: [{name: c, user: {}}]}"
    )
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        code, err = run_operator(kubeconfig, "--http-port", str(port))

    assert code == 2
    assert err.splitlines()[-1].startswith(f"Error: --http-port {port}: ")
    assert err.splitlines()[-1].endswith("; choose another port")
    assert "Traceback" not in err
