"""Talking to pyvmm's agent in a guest: the client of `images/agent`, whose protocol docs/agent.md tells."""
