"""What the operator serves: the whole cluster as one scope, or each namespace of `--namespace` as a scope of its own.

Each scope is listed, swept and watched by itself. A scope that fails (its rights were taken away, its namespace is
gone) is tried again until it works, and the other scopes are served meanwhile.
"""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from enum import StrEnum
from time import monotonic, time

import msgspec

from podlink.metrics import Metrics

logger = logging.getLogger(__name__)

_REPEAT_SECONDS = 300.0
"""A failure for the same reason is logged again after that time. `/readyz` has its newest text meanwhile."""


class Reason(StrEnum):
    """Why a scope fails, as the metric `podlink_scope_failing` has it."""

    FORBIDDEN = "Forbidden"
    NAMESPACE_NOT_FOUND = "NamespaceNotFound"
    NAMESPACE_TERMINATING = "NamespaceTerminating"
    API_SERVER = "ApiServer"
    REDIS = "Redis"
    WATCH = "Watch"


_OF_ONE_NAMESPACE = {Reason.FORBIDDEN, Reason.NAMESPACE_NOT_FOUND, Reason.NAMESPACE_TERMINATING}


class Failure(msgspec.Struct, frozen=True):
    """Why a part of the work on a scope fails, for metrics and for people."""

    reason: Reason
    text: str


class Scope:
    """All namespaces, or one of them.

    Attributes:
        namespace: its name; None for all namespaces.
        ready: set once its objects were listed and compared with Redis. Before that, a pod that is not known must not
            pass for one that is gone.
        swept_at: when its last sweep ended, Unix time; 0 before the first.
    """

    def __init__(self, namespace: str | None, metrics: Metrics) -> None:
        self.namespace = namespace
        self.ready = asyncio.Event()
        self.swept_at = 0.0
        self._metrics = metrics
        self._label = namespace or "all"
        self._sweep: Failure | None = None
        self._watch: Failure | None = None
        self._watching = False
        self._awaited = "the watches have not started yet"
        self._logged: Reason | None = None
        self._logged_at = 0.0
        for reason in Reason:
            metrics.scope_failing.labels(self._label, reason).set(0)

    @property
    def failure(self) -> Failure | None:
        """Why the scope fails; None while it works, and before the first attempt."""
        # A sweep finds out more than a watch that ended.
        return self._sweep or self._watch

    @property
    def problem(self) -> str | None:
        """Why the scope is not served, in a line; None while it is."""
        text = self.failure.text if self.failure else self._starting()
        return f"namespace {self.namespace}: {text}" if text and self.namespace else text

    def sweep_failed(self, reason: Reason, text: str) -> None:
        """Say that its sweep failed."""
        self._sweep = Failure(reason, text)
        self._tell()

    def sweep_done(self) -> None:
        """Say that its sweep went through."""
        self._sweep = None
        self.swept_at = time()
        self._tell()

    def watches_starting(self, text: str) -> None:
        """Say what its watches still wait for. A failure before that holds until they are connected."""
        self._watching, self._awaited = False, text

    def watches_failed(self, text: str) -> None:
        """Say that its watches ended, or that they are not connected for long."""
        self._watch, self._watching = Failure(Reason.WATCH, text), False
        self._tell()

    def watches_connected(self) -> None:
        """Say that all its watches are connected."""
        if not self._watching:
            self._watch, self._watching = None, True
            self._tell()

    def covers(self, namespace: str) -> bool:
        """Whether objects of that namespace belong to this scope."""
        return self.namespace in (None, namespace)

    def _starting(self) -> str | None:
        if not self.ready.is_set():
            return "the first sweep has not run yet"
        return None if self._watching else self._awaited

    def _tell(self) -> None:
        failure = self.failure
        for reason in Reason:
            self._metrics.scope_failing.labels(self._label, reason).set(
                failure is not None and failure.reason == reason
            )
        if failure is None:
            if self._logged and self._watching:
                logger.info("%sserved again", self._subject(), extra=self._fields())
                self._logged = None
            return
        now = monotonic()
        if failure.reason is not self._logged or now - self._logged_at >= _REPEAT_SECONDS:
            self._logged, self._logged_at = failure.reason, now
            follows = "; other namespaces are served meanwhile" if failure.reason in _OF_ONE_NAMESPACE else ""
            text = "%snot served: %s. Tried again until it works%s"
            logger.warning(text, self._subject(), failure.text, follows, extra=self._fields())

    def _subject(self) -> str:
        return f"namespace {self.namespace} is " if self.namespace else ""

    def _fields(self) -> dict[str, str]:
        return {"namespace": self.namespace} if self.namespace else {}


class Scopes:
    """All scopes of an operator."""

    def __init__(self, namespaces: Sequence[str], metrics: Metrics) -> None:
        """Make a scope of each namespace; none: one scope of all."""
        self._scopes = {namespace: Scope(namespace, metrics) for namespace in (tuple(namespaces) or (None,))}

    def __iter__(self) -> Iterator[Scope]:
        return iter(self._scopes.values())

    def of(self, namespace: str) -> Scope:
        """Return the scope of an object's namespace."""
        return self._scopes.get(namespace) or self._scopes[None]

    def is_ready(self, namespace: str) -> bool:
        """Whether the objects of a namespace were all listed and compared with Redis."""
        return self.of(namespace).ready.is_set()

    def problems(self) -> list[str]:
        """Return why scopes are not served, a line for each."""
        return [scope.problem for scope in self if scope.problem is not None]

    @property
    def swept_at(self) -> float:
        """Since when everything was swept at least once, Unix time; 0 before that."""
        return min(scope.swept_at for scope in self)

    async def any_ready(self) -> None:
        """Wait until one of them is ready."""
        waiting = [asyncio.create_task(scope.ready.wait()) for scope in self]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
