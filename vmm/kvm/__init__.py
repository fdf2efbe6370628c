"""KVM as typed objects: the four kinds of file descriptor that the kernel has, and one gate to `ioctl`."""
