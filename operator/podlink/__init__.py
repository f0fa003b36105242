"""PodLink keeps users linked to the pods of stateful Kubernetes services, in Redis."""

from importlib.metadata import version

from podlink.domain.errors import (
    InvalidArgument,
    NotReplicated,
    PartialFailure,
    PodLinkError,
    RedisUnavailable,
    ScriptError,
)
from podlink.store.aio.executor import StatefulExecutor
from podlink.store.operations import Service

__all__ = [
    "InvalidArgument",
    "NotReplicated",
    "PartialFailure",
    "PodLinkError",
    "RedisUnavailable",
    "ScriptError",
    "Service",
    "StatefulExecutor",
    "__version__",
]

__version__ = version("podlink")
