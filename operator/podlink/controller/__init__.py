"""What the operator does with watch events, with changes in Redis and at certain times.

`intake` reads events. `state_writer` writes the states of pods and workloads to Redis. `reconciler` makes the links of
PodLinks. `sweep` repairs what these missed. `monitor` knows whether Redis is available.
"""
