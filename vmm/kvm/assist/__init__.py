"""What software KVM hosts leave out, so that an unmodified Linux runs on them all the same.

Nothing here runs on a host whose KVM is complete: `probe` decides, and then no `VcpuAssist` is made. It reads bytes of
a hostile guest: every walk and decode is bounded, and whatever it cannot do ends in `Unassisted`.
"""
