"""A thin client of the Kubernetes API: what the operator lists, patches and creates, as decoded JSON.

It is built on an HTTP session alone: the generated models of the official client cost more than the requests themselves
on a LIST of thousands.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Generic, Self, TypeVar

import aiohttp
import msgspec

from podlink import tracing
from podlink.cluster.access import Access, Session
from podlink.cluster.kubeconfig import ClusterAccessError
from podlink.domain.errors import PodLinkError
from podlink.domain.podlinks import GROUP, PLURAL, VERSION, PodLink

PAGE = 500
"""Objects of one page of a LIST."""

_TIMEOUT = aiohttp.ClientTimeout(total=30)
_MERGE_PATCH = "application/merge-patch+json"

WATCHED = (("/api/v1", "pods"), ("/apis/apps/v1", "statefulsets"), (f"/apis/{GROUP}/{VERSION}", PLURAL))
"""Root of the API group and plural of each resource that is watched."""

T = TypeVar("T")

Read = Callable[[Mapping[str, Any]], T | None]
"""Makes something of an object; None leaves the object out."""


class ApiError(PodLinkError):
    """The API server refused a request or could not be reached."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        """HTTP status; 0 when there was no answer."""


class Listing(msgspec.Struct, Generic[T], frozen=True):
    """A whole LIST, as what the reader made of its objects."""

    items: list[T]
    version: int
    """resourceVersion that the LIST was made at."""


class Cluster:
    """The objects PodLink reads and writes, in all namespaces or in some.

    Methods raise `ApiError`; nothing is retried here.
    """

    def __init__(self, access: Access, session: Session) -> None:
        """Use a session of that access; it is closed with the client."""
        self.access = access
        self._session = session
        self._renewing = asyncio.Lock()
        self.on_forbidden: Callable[[], None] = lambda: None
        """Told that something was refused for the want of a right."""

    @classmethod
    async def connect(cls, access: Access) -> Self:
        """Make a client; nothing is sent to the API server yet.

        Raises:
            ClusterAccessError: the login cannot be used.
        """
        return cls(access, await access.open())

    async def aclose(self) -> None:
        """Close the connections."""
        await self._session.http.close()

    async def list_pods(self, namespace: str | None, selector: str, read: Read[T]) -> Listing[T]:
        """List the pods that match the label selector."""
        return await self._list("/api/v1", "pods", namespace, selector, read)

    async def check_selector(self, namespace: str | None, selector: str) -> None:
        """Ask for one pod, to find out whether the server takes the label selector.

        Raises:
            ApiError: with status 400 when it doesn't.
        """
        query = [("limit", "1"), ("labelSelector", selector)]
        await self._request("GET", collection("/api/v1", "pods", namespace), query=query)

    async def list_stateful_sets(self, namespace: str | None, read: Read[T]) -> Listing[T]:
        """List the StatefulSets."""
        return await self._list("/apis/apps/v1", "statefulsets", namespace, "", read)

    async def list_podlinks(self, namespace: str | None, read: Read[T]) -> Listing[T]:
        """List the PodLinks.

        Raises:
            ApiError: with status 404 when the type is not installed.
        """
        try:
            return await self._list(f"/apis/{GROUP}/{VERSION}", PLURAL, namespace, "", read)
        except ApiError as error:
            raise _not_installed(error) from error

    async def check_types(self) -> None:
        """Ask whether the server serves every type that is watched; one that has just started may not yet.

        Raises:
            ApiError: with status 404 when one is missing.
        """
        for path, plural in WATCHED:
            try:
                types = await self._request("GET", path)
            except ApiError as error:
                if plural != PLURAL:
                    raise
                raise _not_installed(error) from error
            if plural not in (entry["name"] for entry in types["resources"]):
                raise ApiError(HTTPStatus.NOT_FOUND, f"GET {path}: the server does not serve {plural}")

    async def patch_status(self, link: PodLink, status: Mapping[str, Any]) -> dict[str, Any]:
        """Replace the status of a PodLink; return the object as it is then."""
        # The uid makes the server refuse the patch when the object was deleted and made anew meanwhile.
        body = {"metadata": {"uid": link.uid}, "status": status}
        return await self._request("PATCH", _path(link) + "/status", body=body)

    async def patch_finalizers(self, link: PodLink, finalizers: Sequence[str]) -> dict[str, Any]:
        """Replace the finalizers of a PodLink, provided that it is still at the version we know."""
        metadata = {"uid": link.uid, "resourceVersion": str(link.version), "finalizers": list(finalizers)}
        return await self._request("PATCH", _path(link), body={"metadata": metadata})

    async def read_namespace(self, name: str) -> dict[str, Any]:
        """Read a namespace.

        Raises:
            ApiError: with status 404 when there is none of that name.
        """
        return await self._request("GET", f"/api/v1/namespaces/{name}")

    async def list_leases(self) -> list[dict[str, Any]]:
        """List the Leases of all namespaces."""
        leases = await self._request("GET", "/apis/coordination.k8s.io/v1/leases")
        return list(leases["items"])

    async def read_lease(self, namespace: str, name: str) -> dict[str, Any]:
        """Read a Lease.

        Raises:
            ApiError: with status 404 when there is none.
        """
        return await self._request("GET", f"{_leases(namespace)}/{name}")

    async def create_lease(self, namespace: str, lease: Mapping[str, Any]) -> dict[str, Any]:
        """Create a Lease.

        Raises:
            ApiError: with status 409 when somebody was faster.
        """
        return await self._request("POST", _leases(namespace), body=lease)

    async def update_lease(self, namespace: str, name: str, lease: Mapping[str, Any]) -> dict[str, Any]:
        """Replace a Lease, provided that it is still at the resourceVersion that it was read at.

        Raises:
            ApiError: with status 409 when it is not.
        """
        return await self._request("PUT", f"{_leases(namespace)}/{name}", body=lease)

    async def is_allowed(self, attributes: Mapping[str, str]) -> bool:
        """Ask whether we may do something (resourceAttributes of a SelfSubjectAccessReview)."""
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        return bool((await self._request("POST", path, body=review))["status"]["allowed"])

    async def own_name(self) -> str:
        """Ask as whom the API server knows us, for example `system:serviceaccount:podlink-system:podlink`."""
        review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
        reviewed = await self._request("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", body=review)
        return str(reviewed["status"]["userInfo"]["username"])

    async def create_event(self, namespace: str, event: Mapping[str, Any]) -> None:
        """Create an Event (events.k8s.io/v1)."""
        await self._request("POST", f"/apis/events.k8s.io/v1/namespaces/{namespace}/events", body=event)

    async def _list(self, root: str, plural: str, namespace: str | None, selector: str, read: Read[T]) -> Listing[T]:
        path = collection(root, plural, namespace)
        items: list[T] = []
        version = ""
        async for page in self._pages(path, selector):
            # The pages of one LIST are all read at the version of the first.
            version = version or page["metadata"]["resourceVersion"]
            # Read page by page: the decoded JSON of thousands of pods would be hundreds of megabytes.
            items += [item for body in page["items"] if (item := read(body)) is not None]
        return Listing(items, int(version))

    async def _pages(self, path: str, selector: str) -> AsyncIterator[dict[str, Any]]:
        query = [("limit", str(PAGE))]
        if selector:
            query.append(("labelSelector", selector))
        token: str | None = None
        while token is None or token:
            page = await self._request("GET", path, query=[*query, ("continue", token)] if token else query)
            yield page
            token = page["metadata"].get("continue") or ""

    async def _request(
        self, method: str, path: str, *, query: Sequence[tuple[str, str]] = (), body: object = None
    ) -> dict[str, Any]:
        session = self._session
        with tracing.step("kubernetes", **{"http.request.method": method, "url.path": path}):
            if time.time() >= session.until:
                session = await self._renew(session)
            status, data = await self._send(session, method, path, query, body)
            if status == HTTPStatus.UNAUTHORIZED:
                # Tokens expire. The request was not let in, so it is safe to send it again with fresh credentials.
                status, data = await self._send(await self._renew(session), method, path, query, body)
            if status == HTTPStatus.FORBIDDEN:
                self.on_forbidden()
            if status >= HTTPStatus.BAD_REQUEST:
                raise ApiError(status, f"{method} {path}: {_message(data, status)}")
            try:
                decoded: dict[str, Any] = msgspec.json.decode(data)
            except msgspec.DecodeError as error:
                # A proxy's page, for one.
                raise ApiError(0, f"{method} {path}: the answer is not the API server's: {error}") from error
            return decoded

    @staticmethod
    async def _send(
        session: Session, method: str, path: str, query: Sequence[tuple[str, str]], body: object
    ) -> tuple[int, bytes]:
        headers = {"Accept": "application/json"}
        data = None
        if body is not None:
            headers["Content-Type"] = _MERGE_PATCH if method == "PATCH" else "application/json"
            data = msgspec.json.encode(body)
        request = session.http.request(
            method, session.server + path, params=query, headers=headers, data=data, timeout=_TIMEOUT
        )
        try:
            async with request as response:
                return response.status, await response.read()
        except ClusterAccessError as error:
            # The pod's token is read anew now and then, and may be half written.
            raise ApiError(0, f"{method} {path}: the credentials cannot be read: {error}") from error
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            # RuntimeError is aiohttp's word for a session that was closed in the meantime.
            raise ApiError(0, f"{method} {path}: the API server cannot be reached: {_describe(error)}") from error

    async def _renew(self, refused: Session) -> Session:
        """Log in anew, once for all requests that were refused with the old login."""
        async with self._renewing:
            if self._session is refused:
                try:
                    self._session = await self.access.open(renew=True)
                except ClusterAccessError as error:
                    raise ApiError(HTTPStatus.UNAUTHORIZED, f"the credentials are refused: {error}") from error
                await refused.http.close()
            return self._session


def _not_installed(error: ApiError) -> ApiError:
    if error.status != HTTPStatus.NOT_FOUND:
        return error
    text = "the type PodLink is not installed in this cluster: kubectl apply -f crds/podlinks.yaml"
    return ApiError(error.status, text)


def collection(root: str, plural: str, namespace: str | None) -> str:
    """Return the path of the objects of a resource, in one namespace or in all."""
    return f"{root}/namespaces/{namespace}/{plural}" if namespace else f"{root}/{plural}"


def _leases(namespace: str) -> str:
    return f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"


def _path(link: PodLink) -> str:
    return f"/apis/{GROUP}/{VERSION}/namespaces/{link.namespace}/{PLURAL}/{link.name}"


def _describe(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _message(data: bytes, status: int) -> str:
    try:
        return str(msgspec.json.decode(data)["message"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return f"HTTP {status}"
