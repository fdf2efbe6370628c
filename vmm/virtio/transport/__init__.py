"""How a driver reaches a virtio device: one core, and a register face for each kind of bus."""
