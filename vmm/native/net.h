/* A queue pair and its worker, for the files that make it up. */
#pragma once

#include "net_link.h"
#include "worker.h"

enum {
    TURN_FRAMES = 64,  /* frames of one direction before the other has its turn, and the driver sees them */
    COPY_MAX = 2048,   /* larger frames are not copied */
    PIECES_MAX = 1024, /* what the kernel takes in one readv or writev */
};

struct net {
    pthread_mutex_t lock;
    struct net_rules rules;
    atomic_uint version; /* of the rules */
    struct bucket rx_bytes, rx_frames, tx_bytes, tx_frames;
};

/* A buffer that the frame in hand has, and what of the frame is in it. */
struct held {
    uint16_t head;
    uint32_t written;
};

struct net_pair {
    struct net *net;
    struct worker worker;
    struct queue rx, tx;
    bool has_rx, has_tx, running;
    int link_fd, event_fd;
    enum link_kind kind;
    atomic_int error; /* the errno of the last failed read, until Python takes it */
    struct net_rules rules;
    unsigned version;
    struct iovec *iov; /* of the frame in hand, the pieces of its first buffer first; and room for one more chain */
    uint8_t *spill;    /* FRAME_MAX bytes */
    uint8_t *staging;  /* the same, of a frame that is sent */
    bool direct;       /* the last frame received was large: expect another */
    /* The received frame in hand: its buffers, and what of it is in the spill yet. */
    struct held *held;
    unsigned held_count, first_pieces;
    size_t rest_at, rest_end;
    bool link_empty; /* the last look found no frame: wait for one */
    /* Whether frames come in like a flood, and how many came since when, for the next look. */
    bool flooded;
    unsigned flood_frames;
    uint64_t flood_since_ns;
    counter counters[NET_COUNTERS];
};

/* What a turn of one direction leaves. */
enum turn { IDLE, MORE, FAILED };

/* One turn. *wait_ns becomes less where a limit is to be waited for. */
enum turn transmit(struct net_pair *pair, uint64_t *wait_ns, struct fault *fault);
enum turn receive(struct net_pair *pair, uint64_t *wait_ns, struct fault *fault);

/* Copy the first bytes of the pieces; how many that was, size at most. */
size_t gather(uint8_t *to, const struct iovec *iov, unsigned pieces, size_t size);
/* Nanoseconds until a frame may go. */
uint64_t delay_ns(struct bucket *bytes, struct bucket *frames);

static inline uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static inline void count(struct net_pair *pair, int which, uint64_t times)
{
    counter_add(&pair->counters[which], times);
}
