"""PodLink keeps users linked to the pods of stateful Kubernetes services, in Redis.

`import podlink` is cheap. The executor is imported when it is first used, because redis-py comes with it, which takes
longer to import than everything else together.
"""

import importlib
from typing import TYPE_CHECKING, Any

from podlink.domain.errors import (
    InvalidArgument,
    NotReplicated,
    PartialFailure,
    PodLinkError,
    RedisUnavailable,
    ScriptError,
    WrongEventLoop,
)

if TYPE_CHECKING:
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
    "WrongEventLoop",
    "__version__",
]

__version__: str

_MODULES = {"Service": "podlink.store.operations", "StatefulExecutor": "podlink.store.aio.executor"}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value = importlib.import_module("importlib.metadata").version("podlink")
    elif name in _MODULES:
        value = getattr(importlib.import_module(_MODULES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
