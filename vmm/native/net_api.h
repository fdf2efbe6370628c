/* Network cards as Python sees them: a card with its rules and limits, and a worker for each queue pair. cffi reads
 * this file too. vmm/virtio/net_{rx,tx,filter,frame}.py is the reference. */
#pragma once

#include "api.h"

/* Counters. */
enum {
    NET_TX,
    NET_TX_DROPPED,
    NET_BYTES_SENT,
    NET_RX,
    NET_RX_DROPPED,
    NET_RX_FILTERED,
    NET_BYTES_RECEIVED,
    NET_COUNTERS,
};

/* An Ethernet address is the low 48 bits, its first byte the lowest. */
struct net_rules {
    bool mergeable, checksums, segments;
    uint32_t whole_max; /* the largest frame that is not to be segmented, header and all */
    bool promiscuous, all_multicast, all_unicast, no_multicast, no_unicast, no_broadcast;
    uint64_t address;
    uint32_t unicast_count, multicast_count;
    uint64_t unicast[64], multicast[64]; /* so many at most */
};

struct net_limit {
    uint64_t bandwidth, bandwidth_burst, frames, frames_burst; /* rates a second; 0: no limit */
};

/* What a card is plugged into: a frame with its header is one read or write, and what there is no room for is lost; the
 * same on a packet socket, where frames wait for room; or a stream, on which a frame is its length (big-endian, 32 bits)
 * and then itself, without a header. */
enum link_kind { LINK_TAP, LINK_PACKETS, LINK_STREAM };

struct net;
struct net_pair;

/* A card; NULL with errno set. Its functions are any thread's. */
struct net *net_open(void);
void net_close(struct net *net); /* after its pairs */
void net_set_rules(struct net *net, const struct net_rules *rules);
void net_set_limits(struct net *net, const struct net_limit *rx, const struct net_limit *tx);

/* The worker of one queue pair and one queue of the link, not started; NULL with errno set. rx or tx is NULL where the
 * driver has no such queue. event_fd becomes readable when the worker has something to tell. */
struct net_pair *net_pair_open(struct net *net, int link_fd, enum link_kind kind, int event_fd,
                               const struct region *regions, size_t count, const struct ring_config *rx,
                               const struct wiring *rx_wiring, const struct ring_config *tx,
                               const struct wiring *tx_wiring);
void net_pair_close(struct net_pair *pair);
/* 0 or an errno. May be started again after a stop: it goes on where it was. */
int net_pair_start(struct net_pair *pair);
/* When this returns the worker touches neither guest memory nor the link. Nothing happens if it was not started. */
void net_pair_stop(struct net_pair *pair);
/* Where the queues go on, if the received frame in hand is given up: the next entries of rx's available and used rings,
 * then of tx's. Only while the worker is stopped. */
void net_pair_positions(const struct net_pair *pair, uint16_t positions[4]);
/* The driver takes a queue back; only while the worker is stopped. */
void net_pair_forget(struct net_pair *pair, bool tx);
void net_pair_rewire(struct net_pair *pair, bool tx, int irq_fd, uint64_t flag);
/* Whether there is a fault, which is given once; then the worker has ended. */
bool net_pair_take_fault(struct net_pair *pair, struct fault *fault);
/* The errno of the last failed read of the link, given once; 0: none. */
int net_pair_take_error(struct net_pair *pair);
uint64_t net_pair_counter(const struct net_pair *pair, int which);
