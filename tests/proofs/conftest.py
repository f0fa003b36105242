"""The servers of the store's tests, for statements about all of what the executor does."""

from __future__ import annotations

from store.conftest import certificates, pytest_configure, pytest_generate_tests, raw, server, servers, wire

__all__ = ["certificates", "pytest_configure", "pytest_generate_tests", "raw", "server", "servers", "wire"]
