"""The host's network devices: what they are, and how a tap is put on a bridge."""
