"""Redis: scripts, operations, executors that run them, a walk over the keyspace. The only importer of redis."""
