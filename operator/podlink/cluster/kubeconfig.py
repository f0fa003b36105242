"""Kubeconfig files: how several are merged, and what the chosen context says about the API server and the user.

The rules are kubectl's: https://kubernetes.io/docs/concepts/configuration/organize-cluster-access-kubeconfig/. A field
that PodLink cannot honour is refused with a sentence, because a field that is ignored fails later and elsewhere.
"""

import base64
import binascii
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, cast
from urllib.parse import quote, urlsplit

import msgspec
import yaml

from podlink.domain.errors import PodLinkError

EXEC_VERSIONS = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")
_EXEC_EXTENSION = "client.authentication.k8s.io/exec"

T = TypeVar("T")


class ClusterAccessError(PodLinkError):
    """There is no usable way to the API server; the text says what was tried and what to set."""


class NoClusterError(ClusterAccessError):
    """Nothing says where a cluster is: no kubeconfig, and no service account of a pod."""


class ClientCertificate(msgspec.Struct, frozen=True):
    """A client certificate and its private key, both PEM text."""

    certificate: str
    key: str


class ExecPlugin(msgspec.Struct, frozen=True, kw_only=True):
    """A program that prints credentials (kubeconfig field `exec`)."""

    command: str
    args: tuple[str, ...]
    environment: Mapping[str, str]
    version: str
    """apiVersion of the ExecCredential that is sent and expected."""
    install_hint: str
    interactive_mode: str
    cluster: Mapping[str, Any] | None
    """What the plugin is told about the cluster; None unless `provideClusterInfo` is set."""
    where: str
    """The place in the kubeconfig, for messages."""


class ClusterSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How to reach one API server and how to log in there."""

    server: str
    """URL without a slash at the end."""
    ca: str | None = None
    """PEM text of the certificate authorities; None: those of the system."""
    insecure: bool = False
    """Do not verify the server's certificate."""
    server_name: str | None = None
    """Name to ask for and to expect in the server's certificate; None: the host of the URL."""
    proxy: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    """Sent with each request. A name may come several times."""
    certificate: ClientCertificate | None = None
    token: str | None = None
    token_file: Path | None = None
    basic: tuple[str, str] | None = None
    """Username and password."""
    plugin: ExecPlugin | None = None


class _Extension(msgspec.Struct):
    name: str
    extension: Any = None


class _Cluster(msgspec.Struct, rename="kebab"):
    server: str = ""
    tls_server_name: str = ""
    insecure_skip_tls_verify: bool = False
    certificate_authority: str = ""
    certificate_authority_data: str = ""
    proxy_url: str = ""
    disable_compression: bool = False
    extensions: list[_Extension] = []


class _Variable(msgspec.Struct):
    name: str
    value: str = ""


class _Exec(msgspec.Struct, rename="camel"):
    command: str = ""
    args: list[str] = []
    env: list[_Variable] = []
    api_version: str = ""
    install_hint: str = ""
    provide_cluster_info: bool = False
    interactive_mode: Literal["", "Never", "IfAvailable", "Always"] = ""


class _AuthProvider(msgspec.Struct):
    name: str = ""


class _User(msgspec.Struct, rename="kebab"):
    client_certificate: str = ""
    client_certificate_data: str = ""
    client_key: str = ""
    client_key_data: str = ""
    token: str = ""
    token_file: str = msgspec.field(default="", name="tokenFile")
    username: str = ""
    password: str = ""
    as_user: str = msgspec.field(default="", name="as")
    as_uid: str = ""
    as_groups: list[str] = []
    as_user_extra: dict[str, list[str]] = {}
    auth_provider: _AuthProvider | None = None
    exec: _Exec | None = None


class _Context(msgspec.Struct):
    cluster: str = ""
    user: str = ""


class _NamedCluster(msgspec.Struct):
    name: str
    cluster: _Cluster = msgspec.field(default_factory=_Cluster)


class _NamedUser(msgspec.Struct):
    name: str
    user: _User = msgspec.field(default_factory=_User)


class _NamedContext(msgspec.Struct):
    name: str
    context: _Context = msgspec.field(default_factory=_Context)


class _Document(msgspec.Struct, rename="kebab"):
    """One kubeconfig file; fields that kubectl does not know are ignored, as kubectl does."""

    current_context: str = ""
    clusters: list[_NamedCluster] = []
    users: list[_NamedUser] = []
    contexts: list[_NamedContext] = []


class _Place:
    """An entry of a kubeconfig: what messages name, and what relative paths are relative to."""

    def __init__(self, file: Path, context: str, entry: str) -> None:
        self.file = file
        self._text = f"kubeconfig {file}, context {context!r}, {entry}"

    def field(self, name: str) -> str:
        return f"{self._text}, field {name}"

    def error(self, field: str, problem: str) -> ClusterAccessError:
        return ClusterAccessError(f"{self.field(field)}: {problem}")

    def path(self, value: str) -> Path:
        return self.file.absolute().parent / value

    def pem(self, field: str, file: str, data: str) -> str | None:
        """Return the PEM text of a field, or of the file that it names; inline data is preferred."""
        if data:
            try:
                return base64.b64decode(data, validate=True).decode("ascii")
            except (binascii.Error, ValueError):
                raise self.error(f"{field}-data", "it is not PEM text in base64") from None
        if not file:
            return None
        try:
            return self.path(file).read_text("ascii")
        except OSError as error:
            raise self.error(field, f"{self.path(file)} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise self.error(field, f"{self.path(file)} is not PEM text") from None


class Kubeconfig:
    """The merged content of some files. The first file that sets a value or defines a name wins."""

    def __init__(self, documents: Mapping[Path, _Document]) -> None:
        self._files = ":".join(map(str, documents))
        self._context = next((each.current_context for each in documents.values() if each.current_context), "")
        self._contexts = _by_name("contexts", {file: each.contexts for file, each in documents.items()})
        self._clusters = _by_name("clusters", {file: each.clusters for file, each in documents.items()})
        self._users = _by_name("users", {file: each.users for file, each in documents.items()})

    def settings(self) -> ClusterSettings:
        """Return what the current context says.

        Raises:
            ClusterAccessError: it is incomplete, or says something that PodLink cannot honour.
        """
        if not self._context:
            raise ClusterAccessError(
                f"kubeconfig {self._files}: current-context is not set; choose one: kubectl config use-context NAME"
            )
        file, named = self._find("contexts", self._contexts, self._context, "current-context")
        at_context = _Place(file, self._context, f"context {self._context!r}")
        context = named.context
        if not context.cluster:
            raise at_context.error("cluster", "it is empty; name one of the entries of clusters")
        file, found = self._find("clusters", self._clusters, context.cluster, at_context.field("cluster"))
        at_cluster = _Place(file, self._context, f"cluster {context.cluster!r}")
        user, at_user = _User(), at_context
        if context.user:
            file, found_user = self._find("users", self._users, context.user, at_context.field("user"))
            user, at_user = found_user.user, _Place(file, self._context, f"user {context.user!r}")
        return _settings(found.cluster, at_cluster, user, at_user)

    def _find(self, kind: str, entries: Mapping[str, tuple[Path, T]], name: str, asked_by: str) -> tuple[Path, T]:
        if name not in entries:
            there = ", ".join(sorted(entries)) or "none"
            raise ClusterAccessError(
                f"kubeconfig {self._files}: {asked_by} is {name!r}, which is not in {kind} (there: {there})"
            )
        return entries[name]


def read_kubeconfig(files: Iterable[Path]) -> Kubeconfig | None:
    """Read and merge kubeconfig files. Files that are missing or empty are skipped; None when all are.

    Raises:
        ClusterAccessError: a file cannot be read or is no kubeconfig.
    """
    documents = {file: document for file in files if (document := _read(file)) is not None}
    return Kubeconfig(documents) if documents else None


def _read(file: Path) -> _Document | None:
    try:
        content = yaml.safe_load(file.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ClusterAccessError(f"kubeconfig {file} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ClusterAccessError(f"kubeconfig {file} is not YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return None
    try:
        return msgspec.convert(_without_nulls(content), _Document)
    except msgspec.ValidationError as error:
        raise ClusterAccessError(f"kubeconfig {file} is not a kubeconfig: {error}") from None


def _without_nulls(value: Any) -> Any:
    """Leave out what is null; kubectl takes it for not set."""
    if isinstance(value, dict):
        return {name: _without_nulls(each) for name, each in value.items() if each is not None}
    if isinstance(value, list):
        return [_without_nulls(each) for each in value if each is not None]
    return value


def _by_name(kind: str, entries: Mapping[Path, Sequence[T]]) -> dict[str, tuple[Path, T]]:
    """Map names to entries and the files that they come from."""
    merged: dict[str, tuple[Path, T]] = {}
    for file, listed in entries.items():
        for entry in listed:
            name = cast("Any", entry).name
            first, _ = merged.setdefault(name, (file, entry))
            if first == file and merged[name][1] is not entry:
                raise ClusterAccessError(f"kubeconfig {file}: {kind} has two entries of the name {name!r}; remove one")
    return merged


def _settings(cluster: _Cluster, at_cluster: _Place, user: _User, at_user: _Place) -> ClusterSettings:
    certificate = _certificate(user, at_user)
    server = _server(cluster, at_cluster, tls=certificate is not None)
    ca = at_cluster.pem("certificate-authority", cluster.certificate_authority, cluster.certificate_authority_data)
    if ca and cluster.insecure_skip_tls_verify:
        raise at_cluster.error(
            "insecure-skip-tls-verify", "it is true beside a certificate-authority; remove one of the two"
        )
    headers = _impersonation(user, at_user)
    if cluster.disable_compression:
        headers.append(("Accept-Encoding", "identity"))
    token, basic = _token_or_password(user, at_user)
    settings = ClusterSettings(
        server=server,
        ca=ca,
        insecure=cluster.insecure_skip_tls_verify,
        server_name=cluster.tls_server_name or None,
        proxy=_proxy(cluster, at_cluster),
        headers=tuple(headers),
        certificate=certificate,
        token=token,
        token_file=at_user.path(user.token_file) if user.token_file else None,
        basic=basic,
    )
    if user.auth_provider is not None:
        raise at_user.error(
            "auth-provider", f"{user.auth_provider.name or 'it'} is not supported; use an exec plugin (field exec)"
        )
    # As kubectl: what is given otherwise goes first, and the plugin is not run.
    if user.exec is None or token or user.token_file or basic or certificate:
        return settings
    return msgspec.structs.replace(settings, plugin=_plugin(user.exec, at_user, cluster, ca))


def _server(cluster: _Cluster, place: _Place, *, tls: bool) -> str:
    server = cluster.server.rstrip("/")
    if not server:
        raise place.error("server", "it is empty; set the URL of the API server")
    if "://" not in server:
        tls = tls or bool(cluster.certificate_authority or cluster.certificate_authority_data)
        server = f"{'https' if tls or cluster.insecure_skip_tls_verify else 'http'}://{server}"
    _check_url(place, "server", server, ("https", "http"))
    return server


def _proxy(cluster: _Cluster, place: _Place) -> str | None:
    if not cluster.proxy_url:
        return None
    _check_url(place, "proxy-url", cluster.proxy_url, ("http", "https"))
    return cluster.proxy_url


def _check_url(place: _Place, field: str, url: str, schemes: tuple[str, ...]) -> None:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        # A URL may hold a password.
        shown = url.rpartition("@")[2]
        raise place.error(field, f"{shown!r} cannot be used; give a URL that begins with {' or '.join(schemes)}://")


def _certificate(user: _User, place: _Place) -> ClientCertificate | None:
    certificate = place.pem("client-certificate", user.client_certificate, user.client_certificate_data)
    key = place.pem("client-key", user.client_key, user.client_key_data)
    if certificate and key:
        return ClientCertificate(certificate, key)
    if certificate or key:
        given, missing = ("client-certificate", "client-key") if certificate else ("client-key", "client-certificate")
        raise place.error(missing, f"it is missing beside {given}; set both")
    return None


def _token_or_password(user: _User, place: _Place) -> tuple[str | None, tuple[str, str] | None]:
    basic = (user.username, user.password) if user.username or user.password else None
    if basic and (user.token or user.token_file):
        raise place.error("username", "there is a token too, and only one of the two can be sent; remove one")
    return user.token or None, basic


def _impersonation(user: _User, place: _Place) -> list[tuple[str, str]]:
    if not user.as_user:
        if user.as_uid or user.as_groups or user.as_user_extra:
            raise place.error("as", "it is missing beside as-uid, as-groups or as-user-extra; name the user to be")
        return []
    headers = [("Impersonate-User", user.as_user)]
    headers += [("Impersonate-Uid", user.as_uid)] if user.as_uid else []
    headers += [("Impersonate-Group", group) for group in user.as_groups]
    headers += [
        (f"Impersonate-Extra-{quote(name.lower(), safe='')}", value)
        for name, values in user.as_user_extra.items()
        for value in values
    ]
    return headers


def _plugin(plugin: _Exec, place: _Place, cluster: _Cluster, ca: str | None) -> ExecPlugin:
    if not plugin.command:
        raise place.error("exec.command", "it is empty; name the program to run")
    if plugin.api_version not in EXEC_VERSIONS:
        raise place.error(
            "exec.apiVersion", f"{plugin.api_version!r} is not supported; use {' or '.join(EXEC_VERSIONS)}"
        )
    if not plugin.interactive_mode and plugin.api_version == EXEC_VERSIONS[0]:
        raise place.error("exec.interactiveMode", "it is missing; set Never, IfAvailable or Always")
    # A path is relative to the kubeconfig; a bare name is looked up on PATH.
    command = str(place.path(plugin.command)) if "/" in plugin.command else plugin.command
    return ExecPlugin(
        command=command,
        args=tuple(plugin.args),
        environment={each.name: each.value for each in plugin.env},
        version=plugin.api_version,
        install_hint=plugin.install_hint,
        interactive_mode=plugin.interactive_mode or "IfAvailable",
        cluster=_told_to_plugins(cluster, ca) if plugin.provide_cluster_info else None,
        where=place.field("exec"),
    )


def _told_to_plugins(cluster: _Cluster, ca: str | None) -> dict[str, Any]:
    told = {
        "server": cluster.server,
        "tls-server-name": cluster.tls_server_name,
        "insecure-skip-tls-verify": cluster.insecure_skip_tls_verify,
        "certificate-authority-data": base64.b64encode(ca.encode()).decode() if ca else "",
        "proxy-url": cluster.proxy_url,
        "disable-compression": cluster.disable_compression,
        "config": next((each.extension for each in cluster.extensions if each.name == _EXEC_EXTENSION), None),
    }
    return {name: value for name, value in told.items() if value}
