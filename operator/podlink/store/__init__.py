"""Redis: the operations on the link map, and the executors that run them. The only importer of redis.

The folders are the steps of one call, from first to last:

- `operations`: what to run. Builders check arguments and return an `Operation`. No I/O.
- `batching`: how operations become requests, and how replies become results or errors. No I/O.
- `topology`: which server. URLs, the slots of a Redis Cluster, servers that cannot be reached. No calls of its own.
- `aio`: the asyncio executor: its queue, its connections, its cache.
- `blocking`: the executor for threads: its pool of connections.
- `counting`: the walk over the keys, and the recount of loads. It uses the asyncio executor.

`options` has the options that both executors share. `embedded` starts the embedded Valkey of the operator.
"""
