"""The blocking executor, for threads: a pool of connections to each server. `batching` decides what is sent."""
