"""The CRD takes every object that an earlier version of it took, so it can be upgraded while PodLinks are there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml

from sandbox.cluster import CRD
from sandbox.recording import RECORDINGS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

LOWER_BOUNDS = ("minimum", "minLength", "minItems")
UPPER_BOUNDS = ("maximum", "maxLength", "maxItems")


def narrower(older: Mapping[str, Any], newer: Mapping[str, Any], path: str) -> Iterator[str]:
    """What the newer schema refuses, or drops, and the older one does not."""
    for word in ("type", "format", "pattern", "default"):
        if word in newer and newer[word] != older.get(word):
            yield f"{path}: {word} {newer[word]!r}"
    yield from (f"{path}: {word}" for word in LOWER_BOUNDS if newer.get(word, 0) > older.get(word, 0))
    yield from (
        f"{path}: {word}" for word in UPPER_BOUNDS if word in newer and newer[word] < older.get(word, float("inf"))
    )
    if "enum" in newer:
        yield from (f"{path}: {value}" for value in older.get("enum", ["anything"]) if value not in newer["enum"])
    yield from (f"{path}: requires {name}" for name in set(newer.get("required", ())) - set(older.get("required", ())))
    rules = {rule["rule"] for rule in older.get("x-kubernetes-validations", ())}
    for rule in newer.get("x-kubernetes-validations", ()):
        if rule["rule"] not in rules:
            yield f"{path}: rule {rule['rule']}"
    for name, field in older.get("properties", {}).items():
        if name not in newer.get("properties", {}):
            yield f"{path}: no field {name}"
        else:
            yield from narrower(field, newer["properties"][name], f"{path}.{name}")
    if "items" in older:
        yield from narrower(older["items"], newer.get("items", {}), f"{path}[]")


def spec_of(path: Path) -> Any:
    return yaml.safe_load(path.read_text())["spec"]


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda recording: recording.name)
def test_crd_takes_what_an_earlier_one_took(recording: Path) -> None:
    older, newer = spec_of(recording / CRD.name), spec_of(CRD)
    assert (newer["group"], newer["scope"], newer["names"]) == (older["group"], older["scope"], older["names"])
    versions = {version["name"]: version for version in newer["versions"]}
    for version in older["versions"]:
        kept = versions[version["name"]]
        assert kept["served"]
        assert kept["subresources"] == version["subresources"]
        schemas = [each["schema"]["openAPIV3Schema"] for each in (version, kept)]
        assert list(narrower(*schemas, "")) == []
