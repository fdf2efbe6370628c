"""Machines in files: the whole state of one, and how it goes on from there."""
