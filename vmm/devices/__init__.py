"""The chips of the machine that are not virtio: one file, one chip."""
