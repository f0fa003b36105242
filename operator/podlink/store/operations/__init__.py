"""Every operation on the link map as data: script or command, keys, arguments, and how to read the reply.

A builder checks its arguments and says what to send; it does no I/O. Executors run what it returns, one at a time or
many in a pipeline. A new operation is one builder here and one line in each of the executors.

Running an operation raises `RedisUnavailable` or `ScriptError`; building one raises `InvalidArgument`, which names the
argument and what to pass instead. Where a docstring says "an invalid argument", that is what is meant.
"""

from podlink.store.operations.base import Operation, Shape
from podlink.store.operations.bulk import (
    Bulk,
    compute_linked_pods_if_absent,
    get_linked_pods,
    remove_linked_pods,
    remove_linked_pods_with_id,
    set_linked_pods,
    set_linked_pods_if_absent,
    try_set_linked_pods,
)
from podlink.store.operations.links import (
    compute_linked_pod_if_absent,
    get_linked_pod,
    get_linked_pod_if_persist,
    get_linked_services,
    link_ttl,
    listed_pod,
    remove_linked_pod,
    remove_linked_pod_with_id,
    set_linked_pod,
    set_linked_pod_if_absent,
    try_set_linked_pod,
)
from podlink.store.operations.server import (
    field_expiry_supported,
    get_marker,
    key_type,
    ping,
    run_id,
    scan,
    server_info,
    server_setting,
    set_marker,
)
from podlink.store.operations.services import (
    Service,
    book_load,
    get_service,
    get_service_state,
    get_state_versions,
    get_workload_state,
    get_workload_states,
    get_workload_version,
    release_service_pod,
    reserve_service_pod,
    set_service_state,
    set_workload_state,
)

__all__ = [
    "Bulk",
    "Operation",
    "Service",
    "Shape",
    "book_load",
    "compute_linked_pod_if_absent",
    "compute_linked_pods_if_absent",
    "field_expiry_supported",
    "get_linked_pod",
    "get_linked_pod_if_persist",
    "get_linked_pods",
    "get_linked_services",
    "get_marker",
    "get_service",
    "get_service_state",
    "get_state_versions",
    "get_workload_state",
    "get_workload_states",
    "get_workload_version",
    "key_type",
    "link_ttl",
    "listed_pod",
    "ping",
    "release_service_pod",
    "remove_linked_pod",
    "remove_linked_pod_with_id",
    "remove_linked_pods",
    "remove_linked_pods_with_id",
    "reserve_service_pod",
    "run_id",
    "scan",
    "server_info",
    "server_setting",
    "set_linked_pod",
    "set_linked_pod_if_absent",
    "set_linked_pods",
    "set_linked_pods_if_absent",
    "set_marker",
    "set_service_state",
    "set_workload_state",
    "try_set_linked_pod",
    "try_set_linked_pods",
]
