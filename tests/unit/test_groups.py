"""Which tests run in one process, and which begin first, when pytest-xdist runs several."""

from __future__ import annotations

import pytest

from groups import group, order


@pytest.mark.parametrize(
    ("nodeid", "expected"),
    [
        ("tests/cluster/test_crd.py::test_refused[uid-redis]", "tests/cluster/test_crd.py"),
        ("tests/store/test_links.py::test_link[valkey-async]", "tests/store/test_links.py valkey"),
        ("tests/store/test_links.py::test_link[async-cluster-1]", "tests/store/test_links.py cluster"),
        ("tests/store/test_names.py::test_clusters[a]", "tests/store/test_names.py"),
        ("tests/faults/test_redis.py::test_stops[empty]", "tests/faults/test_redis.py::test_stops[empty]"),
        ("tests/image/test_kubelet.py::test_starts", "image"),
        ("tests/deploy/test_alerts.py::test_fires", "deploy"),
        ("tests/deploy/test_metrics.py::test_names", "deploy"),
        ("tests/deploy/test_chart.py::test_renders", "tests/deploy/test_chart.py"),
    ],
)
def test_a_test_runs_with_those_that_share_what_is_costly(nodeid: str, expected: str) -> None:
    assert group(nodeid) == expected


def test_slow_groups_begin_first() -> None:
    unit = "tests/unit/test_keys.py::test_key"
    shared_server = "tests/store/test_links.py::test_link[valkey]"
    own_server = "tests/store/test_failures.py::test_lost"
    fault = "tests/faults/test_redis.py::test_stops"
    assert sorted([unit, shared_server, own_server, fault], key=order) == [fault, own_server, shared_server, unit]
