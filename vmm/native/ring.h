/* Split virtqueues (VIRTIO 1.2 §2.7), the device's side. Every number that the guest gives is read once and checked
 * before it is used; vmm/virtio/{chain,queue}.py is the reference, and tests/property/ holds both to the same. */
#pragma once

#include "api.h"

enum { REGIONS_MAX = 8, QUEUE_SIZE_MAX = 32768 };

struct memory {
    struct region regions[REGIONS_MAX];
    unsigned count;
};

/* The size bytes at gpa in this process, or NULL if they are not all in one region. */
void *memory_at(const struct memory *memory, uint64_t gpa, uint64_t size);

/* One thread's, but for the two indices, which any thread may read. */
struct ring {
    struct memory memory;
    const uint8_t *desc;
    uint8_t *driver, *device; /* the available and the used ring */
    uint16_t size, indirect_max;
    bool event_idx;
    uint16_t avail_idx;              /* avail.idx when it was last read */
    uint16_t published;              /* used.idx as the driver sees it */
    uint16_t next_avail, next_used;  /* the next entry to take, and to fill; modulo 2^16 */
};

/* 0, or EINVAL if the areas are not RAM or not aligned, or there are too many regions. */
int ring_init(struct ring *ring, const struct ring_config *config, const struct region *regions, size_t count);
