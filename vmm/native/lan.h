/* A lan's switch and its table of addresses, for the files that make it up. */
#pragma once

#include "lan_api.h"
#include "net_rules.h"
#include "worker.h"

#include <sys/socket.h>

enum {
    BATCH = 32, /* frames that are taken from a port before the next one has its turn */
    TABLE = 4096,
    WINDOW = 8, /* places in the table that an address may have */
    TAG_SIZE = 4,
    PIECES_OF_FRAME = 3,
    SLOT = (FRAME_MAX + 1 + 63) & ~63, /* so that frames do not share the sets of a cache */
};

struct port {
    int fd, pcap_fd;      /* fd -1: there is no such port */
    uint16_t vlan;        /* or LAN_TRUNK */
    unsigned addresses;   /* in the table */
    struct bucket floods; /* frames to all others */
};

struct place {
    uint64_t key; /* the VLAN above the Ethernet address (its first byte the lowest); 0: empty */
    uint64_t seen_ns;
    struct port *port;
};

struct table {
    struct place places[TABLE];
    uint64_t age_ns, swept_ns;
    unsigned addresses;
};

struct lan {
    int epoll_fd;
    unsigned count; /* of ports that joined */
    uint64_t now_ns;
    struct port ports[LAN_PORTS + 1]; /* the last one is the switch's own */
    struct table table;
    struct lan_limits limits;
    /* A batch as it came in; and those of its frames that wait to go out to out_port. */
    uint8_t *slots;
    struct mmsghdr in[BATCH], out[BATCH];
    struct iovec in_iov[BATCH], out_iov[BATCH][PIECES_OF_FRAME];
    uint8_t tags[BATCH][TAG_SIZE];
    unsigned out_count;
    struct port *out_port;
};

/* Note that key has sent through port. A port that has as many addresses as it may is not noted with more, and a live
 * address gives way to no other: what is not known goes to all, and no port can push out what others have. */
void table_learn(struct table *table, uint64_t key, struct port *port, uint64_t now_ns);
/* Where key is; NULL: unknown. */
struct port *table_find(const struct table *table, uint64_t key, uint64_t now_ns);
void table_forget(struct table *table, const struct port *port);

/* Add a frame to the port's recording, which ends at the first failure. */
void pcap_write(struct port *port, const struct iovec *iov, unsigned pieces);
