#include "net_rules.h"

#include <string.h>

#define BROADCAST UINT64_C(0xffffffffffff)

bool rules_take_size(const struct net_rules *rules, const uint8_t *prefix, size_t size)
{
    if (size < FRAME_MIN)
        return false;
    if (!prefix[GSO_TYPE])
        return size <= rules->whole_max;
    /* Frames to be segmented may be left from a driver that took them; this one must want them too (§5.1.6.4.1). */
    return rules->segments;
}

static bool listed(const uint64_t *table, uint32_t count, uint64_t address)
{
    for (uint32_t i = 0; i < count; i++)
        if (table[i] == address)
            return true;
    return false;
}

bool rules_want(const struct net_rules *rules, const uint8_t *prefix)
{
    uint64_t destination = 0;

    if (rules->promiscuous)
        return true;
    memcpy(&destination, prefix + HEADER_SIZE, 6);
    if (destination == BROADCAST)
        return !rules->no_broadcast;
    if (destination & 1)
        return !rules->no_multicast &&
               (rules->all_multicast || listed(rules->multicast, rules->multicast_count, destination));
    return !rules->no_unicast && (rules->all_unicast || destination == rules->address ||
                                  listed(rules->unicast, rules->unicast_count, destination));
}
