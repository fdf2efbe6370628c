#include "ring.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "rings are little-endian and read as they are");

enum {
    NEXT = 1,
    WRITE = 2,
    INDIRECT = 4,
    DESCRIPTOR_SIZE = 16,
    USED_SIZE = 8,
    RING = 4, /* offset of ring[] in both rings */
    AVAIL_F_NO_INTERRUPT = 1,
    USED_F_NO_NOTIFY = 1,
};

#define CHAIN_BYTES_MAX (UINT64_C(1) << 32)

struct descriptor {
    uint64_t address;
    uint32_t length;
    uint16_t flags, next;
};

void *memory_at(const struct memory *memory, uint64_t gpa, uint64_t size)
{
    for (unsigned i = 0; i < memory->count; i++) {
        const struct region *region = &memory->regions[i];
        if (gpa >= region->gpa && size <= region->size && gpa - region->gpa <= region->size - size)
            return (void *)(uintptr_t)(region->host + (gpa - region->gpa));
    }
    return NULL;
}

/* The guest writes to the rings while we read them: every access is one load or store, made once. */

static uint16_t load_u16(const uint8_t *at)
{
    return __atomic_load_n((const uint16_t *)(const void *)at, __ATOMIC_ACQUIRE);
}

static void store_u16(uint8_t *at, uint16_t value)
{
    __atomic_store_n((uint16_t *)(void *)at, value, __ATOMIC_RELEASE);
}

/* An indirect table stands where the driver likes, on odd addresses too. */
typedef struct __attribute__((packed, may_alias)) {
    uint64_t low, high;
} raw_descriptor;

static struct descriptor load_descriptor(const uint8_t *at)
{
    const volatile raw_descriptor *raw = (const volatile raw_descriptor *)(const void *)at;
    uint64_t low = raw->low, high = raw->high;
    return (struct descriptor){low, (uint32_t)high, (uint16_t)(high >> 32), (uint16_t)(high >> 48)};
}

__attribute__((format(printf, 3, 4))) static int fail(struct fault *fault, enum fault_kind kind, const char *format, ...)
{
    va_list arguments;
    fault->kind = kind;
    fault->gpa = fault->size = 0;
    va_start(arguments, format);
    vsnprintf(fault->text, sizeof fault->text, format, arguments);
    va_end(arguments);
    return -1;
}

static int fail_memory(struct fault *fault, uint64_t gpa, uint64_t size)
{
    *fault = (struct fault){.kind = FAULT_MEMORY, .gpa = gpa, .size = size};
    return -1;
}

int ring_init(struct ring *ring, const struct ring_config *config, const struct region *regions, size_t count)
{
    const uint64_t size = config->size;

    memset(ring, 0, sizeof *ring);
    if (count > REGIONS_MAX || !size || size > QUEUE_SIZE_MAX || size & (size - 1))
        return EINVAL;
    memcpy(ring->memory.regions, regions, count * sizeof *regions);
    ring->memory.count = (unsigned)count;
    ring->desc = memory_at(&ring->memory, config->desc, DESCRIPTOR_SIZE * size);
    ring->driver = memory_at(&ring->memory, config->driver, RING + 2 * size + 2);
    ring->device = memory_at(&ring->memory, config->device, RING + USED_SIZE * size + 2);
    if (!ring->desc || !ring->driver || !ring->device || config->driver % 2 || config->device % 4)
        return EINVAL;
    ring->size = config->size;
    ring->indirect_max = config->indirect_max;
    ring->event_idx = config->event_idx;
    ring->next_avail = ring->avail_idx = config->next_avail;
    ring->next_used = ring->published = config->next_used;
    return 0;
}

struct ring *ring_open(const struct ring_config *config, const struct region *regions, size_t count)
{
    struct ring *ring = malloc(sizeof *ring);
    if (ring && (errno = ring_init(ring, config, regions, count))) {
        free(ring);
        ring = NULL;
    }
    return ring;
}

void ring_close(struct ring *ring)
{
    free(ring);
}

size_t ring_pieces(const struct ring *ring)
{
    return (size_t)ring->size + ring->indirect_max;
}

/* An error of the descriptor at index of the table, or of an indirect table where index is negative. */
static int fail_descriptor(struct fault *fault, int index, const char *what)
{
    if (index < 0)
        return fail(fault, FAULT_DESCRIPTOR, "an indirect descriptor %s", what);
    return fail(fault, FAULT_DESCRIPTOR, "descriptor %d %s", index, what);
}

/* Add the buffer of one descriptor to the chain; index as for fail_descriptor. */
static int add(struct ring *ring, struct chain *chain, const struct descriptor *descriptor, int index,
               struct fault *fault)
{
    void *host;

    if (!descriptor->length)
        return fail_descriptor(fault, index, "has no length");
    if (!(descriptor->flags & WRITE) && chain->count > chain->readable)
        return fail_descriptor(fault, index, "is readable and comes after a writable one");
    host = memory_at(&ring->memory, descriptor->address, descriptor->length);
    if (!host)
        return fail_memory(fault, descriptor->address, descriptor->length);
    chain->iov[chain->count++] = (struct iovec){host, descriptor->length};
    if (descriptor->flags & WRITE) {
        chain->writable_bytes += descriptor->length;
    } else {
        chain->readable_bytes += descriptor->length;
        chain->readable = chain->count;
    }
    return 0;
}

/* Add the buffers of the indirect table of size bytes at gpa (§2.7.5.3). */
static int parse_indirect(struct ring *ring, struct chain *chain, uint64_t gpa, uint32_t size, struct fault *fault)
{
    const uint32_t count = size / DESCRIPTOR_SIZE;
    const uint8_t *table;
    uint32_t index = 0;

    if (!ring->indirect_max)
        return fail(fault, FAULT_DESCRIPTOR, "INDIRECT was not negotiated");
    if (size % DESCRIPTOR_SIZE || !count || count > ring->indirect_max)
        return fail(fault, FAULT_DESCRIPTOR, "indirect table of %" PRIu32 " bytes", size);
    table = memory_at(&ring->memory, gpa, size);
    if (!table)
        return fail_memory(fault, gpa, size);
    for (uint32_t n = 0; n < count; n++) {
        struct descriptor descriptor;

        if (index >= count)
            return fail(fault, FAULT_DESCRIPTOR, "descriptor %" PRIu32 " of an indirect table of %" PRIu32, index,
                        count);
        descriptor = load_descriptor(table + (size_t)DESCRIPTOR_SIZE * index);
        if (descriptor.flags & INDIRECT)
            return fail(fault, FAULT_DESCRIPTOR, "INDIRECT inside an indirect table");
        if (add(ring, chain, &descriptor, -1, fault))
            return -1;
        if (!(descriptor.flags & NEXT))
            return 0;
        index = descriptor.next;
    }
    return fail(fault, FAULT_DESCRIPTOR, "an indirect table loops");
}

static int bounded(const struct chain *chain, struct fault *fault)
{
    if (chain->readable_bytes + chain->writable_bytes > CHAIN_BYTES_MAX)
        return fail(fault, FAULT_DESCRIPTOR, "the chain at descriptor %u has more than 2^32 bytes", chain->head);
    return 0;
}

/* Fill chain, which has its head, from the descriptor table; 0, or -1 with *fault filled. */
static int parse(struct ring *ring, struct chain *chain, struct fault *fault)
{
    uint16_t index = chain->head;

    for (uint32_t n = 0; n < ring->size; n++) {
        struct descriptor descriptor;

        if (index >= ring->size)
            return fail(fault, FAULT_DESCRIPTOR, "descriptor %u of a table of %u", index, ring->size);
        descriptor = load_descriptor(ring->desc + (size_t)DESCRIPTOR_SIZE * index);
        if (descriptor.flags & INDIRECT) {
            if (descriptor.flags & NEXT)
                return fail(fault, FAULT_DESCRIPTOR, "descriptor %u is INDIRECT and has a NEXT", index);
            if (parse_indirect(ring, chain, descriptor.address, descriptor.length, fault))
                return -1;
            return bounded(chain, fault);
        }
        if (add(ring, chain, &descriptor, index, fault))
            return -1;
        if (!(descriptor.flags & NEXT))
            return bounded(chain, fault);
        index = descriptor.next;
    }
    return fail(fault, FAULT_DESCRIPTOR, "the chain at descriptor %u loops", chain->head);
}

/* Read avail.idx: 1 if it is ahead of us, 0 if not, -1 if it is further ahead than the ring is long. */
static int refresh(struct ring *ring, struct fault *fault)
{
    const uint16_t index = load_u16(ring->driver + 2);
    const uint16_t ahead = (uint16_t)(index - ring->next_avail);

    if (ahead > ring->size)
        return fail(fault, FAULT_QUEUE, "avail.idx jumped to %u, %u ahead in a ring of %u", index, ahead, ring->size);
    ring->avail_idx = index;
    return ahead != 0;
}

int ring_pop(struct ring *ring, struct chain *chain, struct iovec *iov, struct fault *fault)
{
    if (ring->next_avail == ring->avail_idx) {
        const int more = refresh(ring, fault);
        if (more <= 0)
            return more;
    }
    *chain = (struct chain){
        .head = load_u16(ring->driver + RING + 2 * (size_t)(ring->next_avail & (ring->size - 1))),
        .iov = iov,
    };
    if (parse(ring, chain, fault))
        return -1;
    __atomic_store_n(&ring->next_avail, (uint16_t)(ring->next_avail + 1), __ATOMIC_RELAXED);
    return 1;
}

void ring_unpop(struct ring *ring)
{
    __atomic_store_n(&ring->next_avail, (uint16_t)(ring->next_avail - 1), __ATOMIC_RELAXED);
}

void ring_push(struct ring *ring, uint16_t head, uint32_t written)
{
    /* used.idx is stored with release after this, so the entry needs no order of its own. */
    uint32_t *entry = (void *)(ring->device + RING + USED_SIZE * (size_t)(ring->next_used & (ring->size - 1)));
    __atomic_store_n(&entry[0], head, __ATOMIC_RELAXED);
    __atomic_store_n(&entry[1], written, __ATOMIC_RELAXED);
    __atomic_store_n(&ring->next_used, (uint16_t)(ring->next_used + 1), __ATOMIC_RELAXED);
}

bool ring_publish(struct ring *ring)
{
    const uint16_t new = ring->next_used, old = ring->published;

    if (new == old)
        return false;
    store_u16(ring->device + 2, new);
    ring->published = new;
    /* used.idx before used_event or the flags: else both sides may wait for each other. */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (ring->event_idx) {
        const uint16_t event = load_u16(ring->driver + RING + 2 * (size_t)ring->size);
        return (uint16_t)(new - event - 1) < (uint16_t)(new - old);
    }
    return !(load_u16(ring->driver) & AVAIL_F_NO_INTERRUPT);
}

void ring_suppress_kicks(struct ring *ring)
{
    if (!ring->event_idx)
        store_u16(ring->device, USED_F_NO_NOTIFY);
    /* With EVENT_IDX, leaving avail_event where it is asks for none. */
}

int ring_want_kicks(struct ring *ring, struct fault *fault)
{
    if (ring->event_idx)
        store_u16(ring->device + RING + USED_SIZE * (size_t)ring->size, ring->next_avail);
    else
        store_u16(ring->device, 0);
    __atomic_thread_fence(__ATOMIC_SEQ_CST); /* the wish before the look */
    return refresh(ring, fault);
}

uint16_t ring_next_avail(const struct ring *ring)
{
    return __atomic_load_n(&ring->next_avail, __ATOMIC_RELAXED);
}

uint16_t ring_next_used(const struct ring *ring)
{
    return __atomic_load_n(&ring->next_used, __ATOMIC_RELAXED);
}
