"""The servers of the store's tests, for statements about all of what the executor does."""

from __future__ import annotations

from hypothesis import settings

from store.conftest import certificates, pytest_configure, pytest_generate_tests, raw, server, wire

__all__ = ["certificates", "pytest_configure", "pytest_generate_tests", "raw", "server", "wire"]

settings.register_profile("long")
