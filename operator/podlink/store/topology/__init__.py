"""Which server a call goes to: one server, the primary that Sentinels name, or a primary of a Redis Cluster."""
