"""The asyncio executor: the queue of calls, the connections and the cache. `batching` decides what is sent."""
