"""How operations become requests, and replies become results. Both executors use this. There is no I/O here."""
