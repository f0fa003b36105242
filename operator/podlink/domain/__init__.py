"""Pure rules without I/O: keys, states, the identity of pods, PodLinks, and the decisions about them."""
