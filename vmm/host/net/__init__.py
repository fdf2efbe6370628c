"""The host's networks, made, mended and taken away as wholes; and the taps by which cards join them.

==========================================  ==========================================================================
`create`, `networks`, `guests`, `status`    what the verbs of `pyvmm net` do: to networks, to guests; what there is now
`join`, `private`                           what `--net` does: a tap for a card, perhaps behind a NAT of its own
`network`, `physical`, `record`, `store`    what networks are to be, and where that is written down
`transaction`                               changes of the host made wholly or not at all, of steps, which are:
`rules`, `forwarding`, `bridge`,            those of a network behind NAT, and of guests' taps
`dnsmasq`, `shaping`
`physical`, `nic`, `reach`, `persist`       those of a bridge in place of a NIC, checked by what is reached afterwards
`trial`                                     the process that takes such a bridge back unless it is confirmed
`link`, `nft`, `subnets`, `capture`         the kernel: rtnetlink, nftables, which addresses are free, packet sockets
==========================================  ==========================================================================
"""
