"""How to reach the cluster: the user's kubeconfig, or the service account of the pod.

Every connection to the API server, those of our own client and those of Kopf's watches, is a session that is made
here. So a setting holds for both, or for none.
"""

import asyncio
import logging
import math
import os
import ssl
import tempfile
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import aiohttp
import msgspec
from aiohttp import hdrs
from yarl import URL

from podlink.cluster.credentials import Credential, fetch
from podlink.cluster.kubeconfig import (
    ClientCertificate,
    ClusterAccessError,
    ClusterSettings,
    NoClusterError,
    read_kubeconfig,
)

logger = logging.getLogger(__name__)

_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
_RENEWAL_SECONDS = 1.0
"""How long a renewed login counts as new: many requests are refused at once, and one renewal serves them all."""

_FAILURE_SECONDS = 5.0
"""How long after a failed login the next one is tried: an exec plugin may take a second and a core."""


class Session(NamedTuple):
    """An HTTP session that is logged in, and the server that it is for."""

    server: str
    """URL without a slash at the end."""
    http: aiohttp.ClientSession
    until: float
    """When its client certificate expires, Unix time: then another session is needed. Tokens are renewed within it."""


class Access:
    """One API server and the login there. It may be used from several threads and event loops."""

    def __init__(self, read: Callable[[], ClusterSettings]) -> None:
        """Read the settings; log in later.

        Args:
            read: reads the settings. It is called again when the API server refuses the login, because whoever renews
                a login may write the kubeconfig anew.

        Raises:
            ClusterAccessError: the settings cannot be used.
        """
        self._read = read
        self._settings = read()
        self._credential: Credential | None = None
        self._renewed_at = -math.inf
        self._failure: ClusterAccessError | None = None
        self._failed_at = -math.inf
        self._lock = threading.Lock()

    async def open(self, *middlewares: aiohttp.ClientMiddlewareType, renew: bool = False) -> Session:
        """Open a session in the running event loop. Whoever opens it closes it.

        Args:
            middlewares: see each request of the session.
            renew: log in anew first, because the API server refused the login.

        Raises:
            ClusterAccessError: the settings or the login cannot be used.
        """
        settings, credential = await asyncio.to_thread(self._login, renew=renew)
        context = await asyncio.to_thread(_tls_context, settings, credential.certificate)
        http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=context),
            headers=[("User-Agent", f"podlink/{version('podlink')}"), *settings.headers],
            proxy=settings.proxy,
            middlewares=(self._authorize(settings.server), *middlewares),
        )
        return Session(settings.server, http, credential.until if credential.certificate else math.inf)

    def _authorize(self, server: str) -> aiohttp.ClientMiddlewareType:
        origin = URL(server).origin()

        async def authorize(
            request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
        ) -> aiohttp.ClientResponse:
            known = self._credential
            if known is not None and time.time() < known.until:
                credential = known
            else:
                _, credential = await asyncio.to_thread(self._login)
            # A redirect to another server must not hand it the login.
            if credential.authorization and request.url.origin() == origin:
                request.headers[hdrs.AUTHORIZATION] = credential.authorization
            return await handler(request)

        return authorize

    def _login(self, *, renew: bool = False) -> tuple[ClusterSettings, Credential]:
        """Return settings and a credential that has not expired; with `renew`, read both anew."""
        with self._lock:
            if renew and time.monotonic() - self._renewed_at > _RENEWAL_SECONDS:
                self._settings, self._credential = self._read(), None
                self._renewed_at = time.monotonic()
            credential = self._credential
            if credential is None or time.time() >= credential.until:
                credential = self._credential = self._fetch(credential)
            return self._settings, credential

    def _fetch(self, known: Credential | None) -> Credential:
        if self._failure is not None and time.monotonic() - self._failed_at < _FAILURE_SECONDS:
            raise self._failure
        try:
            return fetch(self._settings)
        except ClusterAccessError as error:
            self._failure, self._failed_at = error, time.monotonic()
            if known is None or self._settings.token_file is None:
                raise
            # The file is being replaced, or is gone for a moment: the token that was read last may still do.
            logger.warning("%s; the token that was read before is used", error)
            return msgspec.structs.replace(known, until=time.time() + _FAILURE_SECONDS)


def load_access() -> Access:
    """Return the way to the cluster, in kubectl's order: `$KUBECONFIG`, `~/.kube/config`, then the service account.

    Raises:
        ClusterAccessError: none of them is there, or the one that is there cannot be used.
    """
    return Access(_read_settings)


def own_namespace() -> str | None:
    """The namespace of the pod that this is; None elsewhere."""
    file = _SERVICE_ACCOUNT.with_name("namespace")
    return file.read_text().strip() if file.exists() else None


def _read_settings() -> ClusterSettings:
    named = os.environ.get("KUBECONFIG")
    if named:
        kubeconfig = read_kubeconfig(Path(file).expanduser() for file in named.split(os.pathsep) if file)
        if kubeconfig is None:
            raise ClusterAccessError(f"KUBECONFIG={named} has no content: set it to a kubeconfig file, or unset it")
        return kubeconfig.settings()
    default = _default_kubeconfig()
    kubeconfig = read_kubeconfig([default]) if default else None
    if kubeconfig is not None:
        return kubeconfig.settings()
    if _SERVICE_ACCOUNT.exists():
        return _service_account()
    tried = f"{default} does not exist" if default else "HOME is not set"
    raise NoClusterError(
        f"no cluster: {tried}, and this is no pod with a service account; set KUBECONFIG to a kubeconfig file"
    )


def _default_kubeconfig() -> Path | None:
    try:
        return Path.home() / ".kube" / "config"
    except RuntimeError:
        # The user of a container need have neither HOME nor an entry in /etc/passwd.
        return None


def _service_account() -> ClusterSettings:
    host, port = (os.environ.get(f"KUBERNETES_SERVICE_{name}", "") for name in ("HOST", "PORT"))
    if not host or not port:
        raise ClusterAccessError(
            "the pod's service account cannot be used: KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set"
        )
    file = _SERVICE_ACCOUNT.with_name("ca.crt")
    try:
        ca = file.read_text("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise ClusterAccessError(f"the pod's service account cannot be used: {file}: {error}") from error
    server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    return ClusterSettings(server=server, ca=ca, token_file=_SERVICE_ACCOUNT)


class _NamedContext(ssl.SSLContext):
    """Asks for one server name, and expects it in the certificate, whatever the host of the URL is."""

    name: str | None = None

    def __repr__(self) -> str:
        # aiohttp puts it into the text of each connection error.
        return self.verify_mode.name

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        return super().wrap_bio(incoming, outgoing, server_side, self.name or server_hostname, session)


def _tls_context(settings: ClusterSettings, certificate: ClientCertificate | None) -> ssl.SSLContext:
    """Return a context that verifies as kubectl does.

    It is stricter by default in Python 3.13 and later, which refuse certificate authorities that kubectl accepts.
    """
    context = _NamedContext(ssl.PROTOCOL_TLS_CLIENT)
    context.name = settings.server_name
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        if settings.ca:
            context.load_verify_locations(cadata=settings.ca)
        else:
            context.load_default_certs()
    except ssl.SSLError as error:
        raise ClusterAccessError(f"the certificate-authority of {settings.server} cannot be used: {error}") from error
    if settings.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if certificate:
        _load(context, certificate)
    return context


def _load(context: ssl.SSLContext, certificate: ClientCertificate) -> None:
    # Python's ssl reads certificates from files alone.
    with tempfile.NamedTemporaryFile("w", encoding="ascii", suffix=".pem") as file:
        file.write(f"{certificate.key}\n{certificate.certificate}\n")
        file.flush()
        try:
            # The password is for an encrypted key, which would ask on the terminal; kubectl takes none either.
            context.load_cert_chain(file.name, password="")
        except (ssl.SSLError, ValueError) as error:
            raise ClusterAccessError(f"the client certificate and its key cannot be used: {error}") from error
