"""The servers of the store's tests, for statements about all of what the executor does."""

from __future__ import annotations

from store.conftest import raw, server

__all__ = ["raw", "server"]
