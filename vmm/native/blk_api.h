/* virtio-blk (VIRTIO 1.2 §5.2) as Python drives it. One blk_disk from activation to reset, one blk_queue per ring. */
#pragma once

#include "api.h"

enum { BLK_LAYERS = 8 };

/* One file of a disk of several, and the map of the blocks of 4096 bytes that it has; NULL: all. */
struct blk_layer {
    int fd;
    uint8_t *own;
};

/* Everything Python decided about a disk. fd stays the caller's, as all that is pointed to. */
struct blk_config {
    int fd;             /* the image, through the page cache */
    struct blk_layer layers[BLK_LAYERS]; /* of a disk of several files, from the top */
    unsigned layer_count;                /* 0: there is only the image */
    uint64_t map_at, map_pages; /* where the top's map is in its file, */
    uint8_t *dirty;             /* a byte for each page of 4096 bytes that the file does not have yet, or NULL */
    uint8_t *failed;            /* a flush has lost data */
    int direct_fd;      /* the image around it, or -1 */
    uint32_t alignment; /* what direct_fd wants of addresses, offsets and lengths, in bytes */
    uint64_t size_bytes;
    char serial[20];
    bool readonly;
    bool flush;         /* a FLUSH is a sync; else it is nothing */
    bool sync_writes;   /* the driver cannot flush: each write is a sync (§5.2.6.2) */
    bool discard, write_zeroes; /* negotiated */
    bool stop_on_error; /* a write that fails is parked, not reported to the driver */
    bool io_uring;      /* use it where there is any */
};

/* How many requests of each kind there were; bytes of reads and writes. */
struct blk_counters {
    uint64_t read, bytes_read, write, bytes_written, flush, get_id, discard, write_zeroes, unsupported;
    uint64_t errors, malformed;
};

enum blk_trouble { BLK_NONE, BLK_FAILED, BLK_STALLED };

/* What went wrong with the image since it was asked last; of many failures, the first. */
struct blk_event {
    enum blk_trouble trouble; /* BLK_FAILED: the driver was told; BLK_STALLED: the queue waits for blk_resume */
    const char *operation;    /* "read", "write", "flush", "discard", "zeroing" */
    int error;                /* its errno; 0: the file has shrunk */
    uint64_t offset, length;  /* in bytes */
};

struct blk_disk;
struct blk_queue;

struct blk_disk *blk_open(const struct blk_config *config);
/* When all its queues are freed. */
void blk_close(struct blk_disk *disk);
/* Requests and bytes a second, and how much of each may come at once; 0: no limit. Kick the queues after it. */
void blk_limit(struct blk_disk *disk, uint64_t iops, uint64_t iops_burst, uint64_t bw, uint64_t bw_burst);

/* Start the thread that serves a ring; NULL with errno set. event_fd becomes readable when there is something to take. */
struct blk_queue *blk_start(struct blk_disk *disk, const struct ring_config *ring, const struct wiring *wiring,
                            const struct region *regions, size_t count, int event_fd);
/* End the thread, when all requests it has begun are done: guest memory is touched no more. Idempotent. */
void blk_stop(struct blk_queue *queue);
/* Go on after a stop, from where it was; 0 or an errno. */
int blk_go_on(struct blk_queue *queue);
/* Whether something is parked. Only while the queue is stopped. */
bool blk_waits(const struct blk_queue *queue);
void blk_free(struct blk_queue *queue);

/* From here on, any thread. */
/* Whether the driver broke the ring, which is served no more then; or the image failed. Each is given once. */
bool blk_take_fault(struct blk_queue *queue, struct fault *fault);
bool blk_take_event(struct blk_queue *queue, struct blk_event *event);
/* Do again what was parked. */
void blk_resume(struct blk_queue *queue);
void blk_rewire(struct blk_queue *queue, int irq_fd, uint64_t flag);
/* Add what the queue has counted to *counters. */
void blk_count(const struct blk_queue *queue, struct blk_counters *counters);
uint16_t blk_next_avail(const struct blk_queue *queue);
uint16_t blk_next_used(const struct blk_queue *queue);
