"""What state a namespace is in. A role in a namespace goes with it, so a missing right may only mean that."""

from enum import Enum, auto
from http import HTTPStatus

from podlink.cluster.client import ApiError, Cluster


class NamespaceState(Enum):
    """What the API server says of a namespace."""

    ACTIVE = auto()
    TERMINATING = auto()
    """It is being deleted, and waits until its objects are gone."""
    MISSING = auto()
    UNKNOWN = auto()
    """We may not read it, or the API server did not answer."""


async def namespace_state(cluster: Cluster, name: str) -> NamespaceState:
    """Ask for the state of a namespace."""
    try:
        namespace = await cluster.read_namespace(name)
    except ApiError as error:
        return NamespaceState.MISSING if error.status == HTTPStatus.NOT_FOUND else NamespaceState.UNKNOWN
    return NamespaceState.TERMINATING if namespace["metadata"].get("deletionTimestamp") else NamespaceState.ACTIVE
