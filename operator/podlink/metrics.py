"""The metrics of the operator. No label has a uid or the name of an object, so their number is limited."""

from importlib.metadata import version

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
)

_LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


# The creation time of each counter would double the number of series, and nothing uses it.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """The metrics of one operator, in their own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        ProcessCollector(registry=r)
        Info("podlink_build", "Version of the operator.", registry=r).info({"version": version("podlink")})
        self.leader = Gauge("podlink_leader", "1 if this process is the leader, 0 if it stands by.", registry=r)
        self.events = Counter("podlink_watch_events", "Watch events received.", ["kind"], registry=r)
        self.coalesced = Counter(
            "podlink_coalesced_events",
            "Events without a write of their own, because a later event replaced them.",
            registry=r,
        )
        self.lag = Histogram(
            "podlink_event_to_redis_seconds",
            "Time from the arrival of an event to the reply of the write that it caused.",
            buckets=_LAG_BUCKETS,
            registry=r,
        )
        self.redis_calls = Histogram(
            "podlink_redis_call_seconds",
            "Calls to Redis by operation and outcome.",
            ["operation", "outcome"],
            buckets=_LAG_BUCKETS,
            registry=r,
        )
        self.redis_up = Gauge("podlink_redis_up", "1 while Redis answers and accepts writes.", registry=r)
        self.data_losses = Counter(
            "podlink_redis_data_losses",
            "How often Redis came back without its data, or was a different server.",
            registry=r,
        )
        self.redis_connections = Gauge("podlink_redis_connections", "Open connections to Redis.", registry=r)
        self.redis_circuits_open = Gauge(
            "podlink_redis_circuits_open",
            "Redis servers that could not be reached at the last attempt. Calls fail at once until the next one.",
            registry=r,
        )
        self.script_reloads = Counter(
            "podlink_redis_script_reloads",
            "How often a Redis server had lost a script and got it again.",
            registry=r,
        )
        self.reconciles = Histogram(
            "podlink_reconcile_seconds", "Reconciliations of one PodLink, by outcome.", ["outcome"], registry=r
        )
        self.podlinks = Gauge("podlink_podlinks", "PodLinks by phase.", ["phase"], registry=r)
        self.queue = Gauge("podlink_queue_length", "PodLinks that wait for reconciliation.", registry=r)
        self.sweeps = Histogram("podlink_sweep_seconds", "Sweeps, by cause.", ["cause"], registry=r)
        self.sweep_failures = Counter(
            "podlink_sweep_failures", "Sweeps that failed, because Redis or the API server failed.", registry=r
        )
        self.last_sweep = Gauge(
            "podlink_last_sweep_timestamp_seconds", "When the last complete sweep ended, as Unix time.", registry=r
        )
        self.resync_period = Gauge("podlink_resync_seconds", "The configured resync period.", registry=r)
        self.scope_failing = Gauge(
            "podlink_scope_failing",
            "1 while a namespace of --namespace (or `all`) is not served, by reason.",
            ["scope", "reason"],
            registry=r,
        )
        self.repairs = Counter("podlink_sweep_repairs", "Differences that the sweep found.", ["kind"], registry=r)
        self.recounts = Histogram("podlink_recount_seconds", "Recounts of loads.", registry=r)
        self.recount_repairs = Counter(
            "podlink_recount_repairs",
            "Repairs of the recount: loads of pods, and units of load of temporary links.",
            ["kind"],
            registry=r,
        )
        self.overlaps = Gauge(
            "podlink_overlapping_workloads",
            "StatefulSets that write nothing, because an older one has the same ids.",
            registry=r,
        )
        self.unidentified = Counter(
            "podlink_unidentified_objects",
            "Objects that PodLink cannot use: no valid id, name or field.",
            ["kind"],
            registry=r,
        )
        self.watch_restarts = Counter("podlink_watch_restarts", "Restarts of the watches.", registry=r)
        self.dropped_events = Counter(
            "podlink_dropped_kubernetes_events", "Kubernetes Events that could not be sent.", registry=r
        )
        self._show_from_the_start()

    def _show_from_the_start(self) -> None:
        """Create all series with 0. Otherwise `rate` and `increase` would miss the first count of each."""
        kinds = ("Pod", "StatefulSet", "PodLink")
        for metric, values in (
            (self.events, kinds),
            (self.unidentified, kinds),
            (self.reconciles, ("ok", "stale", "redis_unavailable", "error", "fault")),
            (self.sweeps, ("start", "resync", "relist", "watch_restart", "overlap", "redis_return", "data_loss")),
            (self.repairs, ("pod_state", "workload_state", "podlink", "unreadable")),
            (self.recount_repairs, ("load", "temporary_link")),
        ):
            for value in values:
                metric.labels(value)
