"""What the operator counts. Labels are bounded: no uid, no object name."""

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


# A counter's time of creation doubles the number of series and answers no question here.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """The metrics of one operator, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        ProcessCollector(registry=r)
        Info("podlink_build", "Version of the operator.", registry=r).info({"version": version("podlink")})
        self.leader = Gauge(
            "podlink_leader", "1 while this process does the work, 0 while it stands by for the leader.", registry=r
        )
        self.events = Counter("podlink_watch_events", "Watch events taken in.", ["kind"], registry=r)
        self.coalesced = Counter(
            "podlink_coalesced_events", "Events whose write was merged with that of a later one.", registry=r
        )
        self.lag = Histogram(
            "podlink_event_to_redis_seconds",
            "From the arrival of an event to the reply of the write it led to.",
            buckets=_LAG_BUCKETS,
            registry=r,
        )
        self.redis_calls = Histogram(
            "podlink_redis_call_seconds",
            "Redis calls by operation and outcome.",
            ["operation", "outcome"],
            buckets=_LAG_BUCKETS,
            registry=r,
        )
        self.redis_up = Gauge("podlink_redis_up", "1 while Redis answers.", registry=r)
        self.data_losses = Counter(
            "podlink_redis_data_losses", "How often Redis came back without its data, or was another one.", registry=r
        )
        self.redis_connections = Gauge("podlink_redis_connections", "Open connections to Redis.", registry=r)
        self.redis_circuits_open = Gauge(
            "podlink_redis_circuits_open",
            "Redis servers that could not be reached when last tried; calls to them fail at once for a time.",
            registry=r,
        )
        self.script_reloads = Counter(
            "podlink_redis_script_reloads",
            "How often a Redis server had lost a script and was told it again.",
            registry=r,
        )
        self.reconciles = Histogram(
            "podlink_reconcile_seconds", "Looks at one PodLink, by outcome.", ["outcome"], registry=r
        )
        self.podlinks = Gauge("podlink_podlinks", "PodLinks by phase.", ["phase"], registry=r)
        self.queue = Gauge("podlink_queue_length", "PodLinks that wait to be looked at.", registry=r)
        self.sweeps = Histogram("podlink_sweep_seconds", "Sweeps, by what caused them.", ["cause"], registry=r)
        self.sweep_failures = Counter(
            "podlink_sweep_failures", "Sweeps that ended half-way, because Redis or the API server failed.", registry=r
        )
        self.last_sweep = Gauge(
            "podlink_last_sweep_timestamp_seconds", "When the last whole sweep ended, Unix time.", registry=r
        )
        self.resync_period = Gauge(
            "podlink_resync_seconds", "How often the cluster is compared with Redis, as set.", registry=r
        )
        self.repairs = Counter("podlink_sweep_repairs", "What the sweep found wrong.", ["kind"], registry=r)
        self.recounts = Histogram("podlink_recount_seconds", "Recounts of loads.", registry=r)
        self.recount_repairs = Counter(
            "podlink_recount_repairs",
            "What the recount repaired: loads of pods, units that temporary links hold.",
            ["kind"],
            registry=r,
        )
        self.overlaps = Gauge(
            "podlink_overlapping_workloads", "StatefulSets that write nothing: an older one has their ids.", registry=r
        )
        self.unidentified = Counter(
            "podlink_unidentified_objects",
            "Objects left out: no usable id, name or field.",
            ["kind"],
            registry=r,
        )
        self.watch_restarts = Counter("podlink_watch_restarts", "Restarts of the watches.", registry=r)
        self.dropped_events = Counter(
            "podlink_dropped_kubernetes_events", "Kubernetes Events that could not be sent.", registry=r
        )
        self._show_from_the_start()

    def _show_from_the_start(self) -> None:
        """Have series at 0: of one that appears with its first count, `rate` and `increase` would miss that count."""
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
