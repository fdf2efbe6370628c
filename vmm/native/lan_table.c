#include "lan.h"

static struct place *window(const struct table *table, uint64_t key)
{
    const uint64_t hash = (key * UINT64_C(0x9e3779b97f4a7c15)) >> 32;
    return (struct place *)&table->places[hash % (TABLE - WINDOW + 1)];
}

static bool live(const struct table *table, const struct place *place, uint64_t now_ns)
{
    return place->key && now_ns - place->seen_ns < table->age_ns;
}

static void empty(struct place *place)
{
    place->key = 0;
    place->port->addresses--;
}

/* Empty the places of what has aged, some times in its life: they count as their ports' until then. */
static void sweep(struct table *table, uint64_t now_ns)
{
    if (now_ns - table->swept_ns < table->age_ns / 8)
        return;
    table->swept_ns = now_ns;
    for (struct place *place = table->places; place < table->places + TABLE; place++)
        if (place->key && !live(table, place, now_ns))
            empty(place);
}

void table_learn(struct table *table, uint64_t key, struct port *port, uint64_t now_ns)
{
    struct place *first = window(table, key), *found = NULL;

    sweep(table, now_ns);
    for (struct place *place = first; place < first + WINDOW; place++) {
        if (place->key == key) {
            found = place;
            break;
        }
        if (!found && !place->key)
            found = place;
    }
    if (!found)
        return;
    if (found->key != key || found->port != port) {
        if (port->addresses >= table->addresses)
            return;
        if (found->key)
            empty(found); /* it has moved */
        found->key = key;
        found->port = port;
        port->addresses++;
    }
    found->seen_ns = now_ns;
}

struct port *table_find(const struct table *table, uint64_t key, uint64_t now_ns)
{
    const struct place *first = window(table, key);

    for (const struct place *place = first; place < first + WINDOW; place++)
        if (place->key == key)
            return live(table, place, now_ns) ? place->port : NULL;
    return NULL;
}

void table_forget(struct table *table, const struct port *port)
{
    for (struct place *place = table->places; place < table->places + TABLE; place++)
        if (place->key && place->port == port)
            empty(place);
}
