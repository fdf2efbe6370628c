/* A hostile driver made of the fuzzer's bytes: guest memory of two regions, and a ring in it. */
#pragma once

#include "ring.h"

#include <stdlib.h>
#include <string.h>

enum { LOW = 16 << 10, HIGH = 4 << 10, PIECES = 64 + 256 };
#define HIGH_GPA (UINT64_C(1) << 32)

static uint8_t low[LOW] __attribute__((aligned(4096))), high[HIGH] __attribute__((aligned(4096)));

static inline void check(bool condition)
{
    if (!condition)
        abort();
}

static inline bool in_guest(const void *at, uint64_t size)
{
    const uintptr_t address = (uintptr_t)at;
    return (address >= (uintptr_t)low && size <= LOW && address - (uintptr_t)low <= LOW - size) ||
           (address >= (uintptr_t)high && size <= HIGH && address - (uintptr_t)high <= HIGH - size);
}

/* A ring at gpa 0 as the first bytes of data say, with the rest of data as guest memory; false if they are too few. */
static inline bool open_guest(struct ring *ring, const uint8_t *data, size_t size)
{
    const struct region regions[] = {{0, LOW, (uintptr_t)low}, {HIGH_GPA, HIGH, (uintptr_t)high}};
    struct ring_config config = {0};
    size_t part;

    if (size < 4)
        return false;
    config.size = (uint16_t)(1 << data[0] % 7);
    config.indirect_max = data[1];
    config.event_idx = data[2] & 1;
    config.next_avail = config.next_used = data[2] & 2 ? 0xfffe : 0;
    config.desc = 0;
    config.driver = 16 * (uint64_t)config.size;
    config.device = config.driver + 8 + 2 * (uint64_t)config.size;
    config.device += -config.device & 3;
    data += 4;
    size -= 4;
    memset(low, 0, LOW);
    memset(high, 0, HIGH);
    part = size < LOW ? size : LOW;
    memcpy(low, data, part);
    memcpy(high, data + part, size - part < HIGH ? size - part : HIGH);
    check(!ring_init(ring, &config, regions, 2));
    return true;
}

/* What ring_pop promises of a chain. */
static inline void check_chain(const struct chain *chain)
{
    uint64_t readable = 0, writable = 0;

    check(chain->readable <= chain->count && chain->count > 0 && chain->count <= PIECES);
    for (unsigned i = 0; i < chain->count; i++) {
        check(chain->iov[i].iov_len > 0 && in_guest(chain->iov[i].iov_base, chain->iov[i].iov_len));
        *(i < chain->readable ? &readable : &writable) += chain->iov[i].iov_len;
    }
    check(readable == chain->readable_bytes && writable == chain->writable_bytes);
    check(readable + writable <= UINT64_C(1) << 32);
}

static inline void check_fault(const struct fault *fault)
{
    check(fault->kind == FAULT_MEMORY || fault->kind == FAULT_DESCRIPTOR || fault->kind == FAULT_QUEUE);
    check(fault->kind == FAULT_MEMORY || (fault->text[0] && memchr(fault->text, 0, sizeof fault->text)));
}
