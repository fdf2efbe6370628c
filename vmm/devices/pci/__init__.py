"""Conventional PCI as a guest sees it: configuration space, the bus with its host bridge, MSI-X."""
