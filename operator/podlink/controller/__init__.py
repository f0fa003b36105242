"""The operator's work: what watch events, Redis and the clock lead to.

Intake takes events in, the state writer brings pod and workload states to Redis, the reconciler brings PodLinks and
links together, the sweep finds what all of them missed, and the monitor knows whether Redis is there.
"""
