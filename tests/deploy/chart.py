"""The chart as data: its values, the files under ci/ that set them, and what its roles grant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import yaml

from sandbox.cluster import CHART

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

VALUES_FILES = sorted((CHART / "ci").glob("*-values.yaml"))
URL = "redis.url=redis://redis.data:6379/0"
"""For `--set`: without a Redis it does not render."""

each_values_file = pytest.mark.parametrize(
    "values", VALUES_FILES, ids=[path.stem.removesuffix("-values") for path in VALUES_FILES]
)


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def default_values() -> dict[str, Any]:
    return load(CHART / "values.yaml")


PASSED_ON = {"podSecurityContext", "securityContext"}
"""Objects of Kubernetes' own, which go into the pod as they are."""


def leaves(values: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Paths of the values that hold no others, as `helm --set` has them."""
    for name, value in values.items():
        if isinstance(value, dict) and value and name not in PASSED_ON:
            yield from leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}"


def value_of(values: Any, path: str) -> Any:
    """None when it is not set."""
    for name in path.split("."):
        values = values.get(name) if isinstance(values, dict) else None
    return values


class Right(NamedTuple):
    """One verb on one resource."""

    group: str
    resource: str
    """With its subresource: podlinks/status."""
    verb: str


def rights_of(*roles: Mapping[str, Any]) -> set[Right]:
    """What roles grant; under which names, where a rule has any, is left out."""
    return {
        Right(group, resource, verb)
        for role in roles
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
