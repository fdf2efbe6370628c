"""The privileged part of an ordinary user's networks: `pyvmm-net-helper`, and how a VM asks it."""
