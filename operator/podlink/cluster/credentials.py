"""What is sent to the API server to log in: read from the settings, from a token file, or from an exec plugin."""

import base64
import json
import math
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from podlink.cluster.kubeconfig import ClientCertificate, ClusterAccessError, ClusterSettings, ExecPlugin

_TOKEN_FILE_SECONDS = 60.0
"""How long a token that was read from a file is used, as in client-go. A token of a service account is replaced well
before it expires."""

_PLUGIN_SECONDS = 60.0
"""How long a plugin may take that asks nobody anything."""

_EARLY_SECONDS = 10.0
"""How long before its expiry a credential of a plugin is replaced."""


class Credential(msgspec.Struct, frozen=True, kw_only=True):
    """A login as it is now."""

    authorization: str | None = None
    """Value of the header Authorization."""
    certificate: ClientCertificate | None = None
    until: float = math.inf
    """When to ask for another one, Unix time."""


class _Status(msgspec.Struct, rename="camel"):
    token: str = ""
    client_certificate_data: str = ""
    client_key_data: str = ""
    expiration_timestamp: datetime | None = None


class _ExecCredential(msgspec.Struct, rename="camel"):
    api_version: str
    kind: str
    status: _Status | None = None


def fetch(settings: ClusterSettings) -> Credential:
    """Return the credential that the settings lead to; reads a file or runs a program where they say so.

    Raises:
        ClusterAccessError: the file cannot be read, or the program fails; the text says which and why.
    """
    if settings.token_file is not None:
        token = _read_token(settings.token_file, settings.token)
        until = time.time() + _TOKEN_FILE_SECONDS
        return Credential(authorization=f"Bearer {token}", certificate=settings.certificate, until=until)
    if settings.plugin is not None:
        return _run(settings.plugin)
    authorization = None
    if settings.token:
        authorization = f"Bearer {settings.token}"
    elif settings.basic:
        authorization = "Basic " + base64.b64encode(":".join(settings.basic).encode()).decode()
    return Credential(authorization=authorization, certificate=settings.certificate)


def _read_token(file: Path, otherwise: str | None) -> str:
    try:
        token = file.read_text("utf-8").strip()
        problem = "it is empty"
    except OSError as error:
        token, problem = "", f"it cannot be read: {error.strerror}"
    except UnicodeDecodeError:
        token, problem = "", "it is not text"
    token = token or otherwise or ""
    if not token:
        raise ClusterAccessError(f"token file {file}: {problem}")
    return token


def _run(plugin: ExecPlugin) -> Credential:
    """Run an exec plugin: https://kubernetes.io/docs/reference/access-authn-authz/authentication/#client-go-credential-plugins."""
    interactive = plugin.interactive_mode != "Never" and sys.stdin is not None and sys.stdin.isatty()
    if plugin.interactive_mode == "Always" and not interactive:
        raise _failed(plugin, "it asks its user, and standard input is no terminal; use another login here")
    spec: dict[str, object] = {"interactive": interactive}
    if plugin.cluster is not None:
        spec["cluster"] = plugin.cluster
    request = {"apiVersion": plugin.version, "kind": "ExecCredential", "spec": spec}
    try:
        done = subprocess.run(  # noqa: S603 - the user's kubeconfig names the program
            [plugin.command, *plugin.args],
            env={**os.environ, **plugin.environment, "KUBERNETES_EXEC_INFO": json.dumps(request)},
            stdin=None if interactive else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            # Where somebody can answer, the questions are written there.
            stderr=None if interactive else subprocess.PIPE,
            timeout=None if interactive else _PLUGIN_SECONDS,
            check=False,
        )
    except OSError as error:
        hint = f" ({' '.join(plugin.install_hint.split())})" if plugin.install_hint else ""
        raise _failed(plugin, f"it cannot be started: {error.strerror}{hint}") from error
    except subprocess.TimeoutExpired as error:
        raise _failed(plugin, f"it did not end within {_PLUGIN_SECONDS:g} s") from error
    if done.returncode != 0:
        said = " ".join((done.stderr or b"").decode(errors="replace").split())
        raise _failed(plugin, f"it ended with exit code {done.returncode}" + (f": {said}" if said else ""))
    return _read_answer(plugin, done.stdout)


def _read_answer(plugin: ExecPlugin, answer: bytes) -> Credential:
    try:
        credential = msgspec.json.decode(answer, type=_ExecCredential)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _failed(plugin, f"what it printed is no ExecCredential: {error}") from None
    status = credential.status
    if credential.api_version != plugin.version or credential.kind != "ExecCredential":
        printed = f"{credential.kind} of {credential.api_version}"
        raise _failed(plugin, f"it printed {printed} instead of ExecCredential of {plugin.version}")
    if status is None or not (status.token or status.client_certificate_data):
        raise _failed(plugin, "it printed neither a token nor a client certificate")
    if bool(status.client_certificate_data) != bool(status.client_key_data):
        raise _failed(plugin, "it printed only one of clientCertificateData and clientKeyData")
    certificate = None
    if status.client_certificate_data:
        certificate = ClientCertificate(status.client_certificate_data, status.client_key_data)
    until = math.inf
    if (expires := status.expiration_timestamp) is not None:
        until = expires.replace(tzinfo=expires.tzinfo or UTC).timestamp() - _EARLY_SECONDS
    return Credential(
        authorization=f"Bearer {status.token}" if status.token else None, certificate=certificate, until=until
    )


def _failed(plugin: ExecPlugin, problem: str) -> ClusterAccessError:
    return ClusterAccessError(f"{plugin.where}: {plugin.command}: {problem}")
