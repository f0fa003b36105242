"""What PodLink knows without asking anybody: keys, states, identities and decisions, all of it pure."""
