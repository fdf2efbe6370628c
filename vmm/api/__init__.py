"""Talking to running VMs: their names and directories, the control socket, the console for others."""
