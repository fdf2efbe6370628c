/* The switch of a lan as Python sees it. cffi reads this file too. A port is a SOCK_SEQPACKET socket; a message is a frame
 * with a struct virtio_net_hdr before it, which is all zeros when it leaves: nothing is left for the reader to finish. */
#pragma once

#include "api.h"

enum {
    LAN_PORTS = 256,
    LAN_NATIVE = 1,     /* the VLAN of untagged frames, where a port says nothing else */
    LAN_TRUNK = 0xffff, /* in the place of a VLAN: all of them, tagged but LAN_NATIVE */
    LAN_KNOCK = 1,      /* what lan_run and lan_turn return: the listening socket is readable, */
    LAN_EMPTY = 2,      /* or there is no port (any more) */
};

struct lan_limits {
    uint64_t age_ns;               /* an address that has not sent for so long is forgotten */
    uint32_t addresses;            /* that are known of one port */
    uint64_t floods, floods_burst; /* frames a second that a port may have sent to all others */
};

struct lan;

/* A switch without ports; NULL with errno set. listen_fd stays the caller's. One thread at a time calls. */
struct lan *lan_open(int listen_fd, const struct lan_limits *limits);
void lan_close(struct lan *lan);
/* Add a port, with this number if that is free: its number, or an errno, negative. The descriptors are the switch's from
 * then on. What goes through the port is recorded in the regular file pcap_fd, if that is not -1. */
int lan_join(struct lan *lan, int fd, int number, uint16_t vlan, int pcap_fd);
/* Give the switch a port of its own, which is in all VLANs and does not count; 0 or an errno. */
int lan_serve(struct lan *lan, int fd);
/* Whether there is a port with this number. */
bool lan_has(const struct lan *lan, int number);
/* Move frames until somebody knocks, the last port has left, or there was none for timeout_ms. */
int lan_run(struct lan *lan, int timeout_ms);
/* One turn of that, in which it waits for timeout_ms at most (-1: for ever); 0: it would go on. */
int lan_turn(struct lan *lan, int timeout_ms);
