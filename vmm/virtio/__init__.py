"""virtio devices (VIRTIO 1.2): status, rings and devices know nothing of the bus; `transport/` gives them registers."""
