"""Back ends on the host: files and file descriptors, never virtio."""
