"""The version is that of pyproject.toml everywhere, and the changelog says what is new in it."""

from __future__ import annotations

import re

from podlink import __version__
from sandbox import manifests
from sandbox.cluster import REPOSITORY

CHANGELOG = (REPOSITORY / "CHANGELOG.md").read_text()


def test_installed_version_is_that_of_the_checkout() -> None:
    assert f'\nversion = "{__version__}"\n' in (REPOSITORY / "pyproject.toml").read_text(), "run: make venv"


def test_files_name_this_version() -> None:
    late = [path for path, text in manifests.versioned().items() if (REPOSITORY / path).read_text() != text]
    assert not late, "run: make manifests"
    assert all(__version__ in text for text in manifests.versioned().values())


def test_changelog_has_this_version_and_those_before_in_order() -> None:
    versions = re.findall(r"^## \[?(\d+\.\d+\.\d+)", CHANGELOG, re.MULTILINE)
    assert versions[0] == __version__
    assert versions == sorted(versions, key=lambda version: [*map(int, version.split("."))], reverse=True)
