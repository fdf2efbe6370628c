/* What Python sees of the data plane: rings, faults, counters. cffi reads this file too (build.py), so it holds plain
 * declarations only. Addresses of guest memory are guest-physical unless they are called host. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

/* A piece of guest RAM: size bytes at gpa are at host in this process. */
struct region {
    uint64_t gpa, size, host;
};

/* A queue as the driver set it up, and where it goes on (VIRTIO 1.2 §2.7). */
struct ring_config {
    uint64_t desc, driver, device;
    uint16_t size;         /* entries, a power of two */
    uint16_t indirect_max; /* longest indirect table in descriptors; 0: INDIRECT_DESC was not negotiated */
    bool event_idx;
    uint16_t next_avail, next_used;
};

/* How a queue is kicked, and how it interrupts: set the byte at flag (if not 0), then write to irq_fd (if not -1). */
struct wiring {
    int kick_fd, irq_fd;
    uint64_t flag;
};

enum fault_kind { FAULT_NONE, FAULT_QUEUE, FAULT_DESCRIPTOR, FAULT_MEMORY };

/* What the driver did wrong. Only FAULT_MEMORY has gpa and size, only the others have a text. */
struct fault {
    enum fault_kind kind;
    uint64_t gpa, size;
    char text[96];
};

/* One buffer of the driver: readable pieces of guest memory, then writable ones. */
struct chain {
    uint16_t head;
    unsigned readable, count; /* pieces that are readable, and all */
    uint64_t readable_bytes, writable_bytes;
    struct iovec *iov;
};

struct ring;

/* A ring over copies of its arguments; NULL with errno set if its areas are not RAM. For tests: workers embed theirs. */
struct ring *ring_open(const struct ring_config *config, const struct region *regions, size_t count);
void ring_close(struct ring *ring);

/* The next buffer: 1, or 0 if there is none, or -1 with *fault filled; then the buffer stays in the queue. The pieces
 * stand in iov, which has room for ring_pieces(). */
int ring_pop(struct ring *ring, struct chain *chain, struct iovec *iov, struct fault *fault);
size_t ring_pieces(const struct ring *ring);
/* Put the buffer that was popped last back, unused. */
void ring_unpop(struct ring *ring);
/* Stage the buffer head as used, with written bytes. */
void ring_push(struct ring *ring, uint16_t head, uint32_t written);
/* Let the driver see the staged buffers; whether it wants an interrupt for them (§2.7.7.2). */
bool ring_publish(struct ring *ring);
void ring_suppress_kicks(struct ring *ring);
/* Ask for a kick for the next buffer: 0, or 1 if one came meanwhile, or -1 with *fault filled. */
int ring_want_kicks(struct ring *ring, struct fault *fault);
uint16_t ring_next_avail(const struct ring *ring);
uint16_t ring_next_used(const struct ring *ring);
