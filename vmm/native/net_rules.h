/* Which frames a driver gets, and what a frame looks like (VIRTIO 1.2 §5.1.6). */
#pragma once

#include "net_api.h"

enum {
    HEADER_SIZE = 12,
    FLAGS = 0, /* offsets in the header */
    GSO_TYPE = 1,
    NUM_BUFFERS = 10,
    PREFIX_SIZE = HEADER_SIZE + 6, /* what of a frame is looked at: the header and the destination */
    FRAME_MIN = HEADER_SIZE + 14,
    FRAME_MAX = HEADER_SIZE + 65535 + 18, /* 64 KiB to be segmented, with Ethernet and VLAN headers */
};

/* Whether a frame of size bytes, which begins with prefix (PREFIX_SIZE bytes), may be given to the driver. */
bool rules_take_size(const struct net_rules *rules, const uint8_t *prefix, size_t size);
/* Whether the driver wants frames for the destination in prefix. */
bool rules_want(const struct net_rules *rules, const uint8_t *prefix);
