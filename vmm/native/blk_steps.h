/* The requests of a queue on their way: begun, done in steps, here or by blk_aio, and given back to the driver. All of
 * it is the queue's own thread's. */
#pragma once

#include "blk_aio.h"
#include "worker.h"

enum { IN_FLIGHT_MAX = 256 }; /* requests of one queue */

struct blk_disk {
    struct blk_config config;
    atomic_bool no_wait; /* preadv2 may be asked not to wait */
    pthread_mutex_t own_lock; /* held while blocks become those of an overlay, and while it is flushed */
    struct bucket iops, bw;
};

struct blk_queue {
    struct worker worker;
    struct queue queue;
    struct blk_disk *disk;
    bool running;
    struct iovec *iov;           /* for the chain that is being parsed */
    struct blk_aio *aio;         /* from the first step that has to wait */
    struct blk_request *requests, *unused, *parked;
    unsigned in_flight;
    unsigned batch;              /* requests pushed, and … */
    uint64_t batch_bytes;        /* … bytes moved since the driver was last told */
    atomic_bool stalled;         /* something is parked: nothing new is begun */
    counter kinds[KINDS], bytes_read, bytes_written, errors;
    struct blk_event event;      /* under worker.lock */
};

/* Begin with what was popped: it is done at once in most cases. There must be an unused request. */
void steps_begin(struct blk_queue *q, const struct chain *chain);
/* Take what blk_aio has done; whether that was anything. With wait, all that is in flight. */
bool steps_reap(struct blk_queue *q, bool wait);
/* Do again what failed and was parked. */
void steps_retry(struct blk_queue *q);
/* Let the driver see what is finished. */
void steps_publish(struct blk_queue *q);
