"""Guest kernels and root disks, made from Debian packages by name; see README.md."""
