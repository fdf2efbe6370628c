#include "net.h"

#include <errno.h>
#include <string.h>

/* Copy size bytes into the pieces, as much as they hold, from byte at on; how many that was. */
static size_t scatter(const struct iovec *iov, unsigned pieces, size_t at, const uint8_t *from, size_t size)
{
    size_t done = 0;

    for (unsigned i = 0; i < pieces && done < size; i++) {
        const size_t length = iov[i].iov_len;
        if (at < length) {
            const size_t part = least(length - at, size - done);
            memcpy((uint8_t *)iov[i].iov_base + at, from + done, part);
            done += part;
            at = 0;
        } else {
            at -= length;
        }
    }
    return done;
}

/* The driver's next receive buffer: as ring_pop, but if there is none its next kick is asked for (not in a flood). */
static int next_buffer(struct net_pair *pair, struct chain *chain, struct iovec *iov, struct fault *fault)
{
    int got = ring_pop(&pair->rx.ring, chain, iov, fault);

    if (!got && !pair->flooded && (got = ring_want_kicks(&pair->rx.ring, fault)) > 0)
        got = ring_pop(&pair->rx.ring, chain, iov, fault);
    return got;
}

static void hold(struct net_pair *pair, uint16_t head, size_t written)
{
    pair->held[pair->held_count++] = (struct held){head, (uint32_t)least(written, FRAME_MAX)};
}

/* Give up the frame in hand; its buffers are the next ones again. */
static void put_back(struct net_pair *pair)
{
    for (; pair->held_count; pair->held_count--)
        ring_unpop(&pair->rx.ring);
    pair->first_pieces = 0;
    pair->rest_at = pair->rest_end = 0;
}

/* Pop as many more buffers as a large frame may need, for readv to fill; the number of pieces. What is wrong with one
 * of them is told when its turn comes. */
static unsigned look_ahead(struct net_pair *pair, unsigned pieces, uint64_t *room)
{
    struct ring *ring = &pair->rx.ring;

    while (*room < FRAME_MAX && pair->held_count < ring->size && pieces + ring_pieces(ring) < PIECES_MAX) {
        struct chain chain;
        struct fault ignored;

        if (ring_pop(ring, &chain, pair->iov + pieces, &ignored) <= 0)
            break;
        if (chain.readable || !chain.writable_bytes) { /* rare: let the careful path have it */
            ring_unpop(ring);
            break;
        }
        hold(pair, chain.head, chain.writable_bytes);
        pieces += chain.count;
        *room += chain.writable_bytes;
    }
    return pieces;
}

/* Say how a frame of size bytes, read into the buffers held and then the spill, lies; unused buffers go back. */
static void settle(struct net_pair *pair, size_t size)
{
    unsigned used = 0;

    do {
        struct held *held = &pair->held[used++];
        held->written = (uint32_t)least(held->written, size);
        size -= held->written;
    } while (size && used < pair->held_count);
    for (; pair->held_count > used; pair->held_count--)
        ring_unpop(&pair->rx.ring);
    pair->rest_at = 0;
    pair->rest_end = size;
}

/* Read the next frame: into the buffers held, whose pieces these are, or for a small one into the spill. */
static ssize_t read_frame(struct net_pair *pair, unsigned pieces)
{
    if (!pair->direct)
        return link_read(pair->link_fd, pair->kind, pair->spill);
    pieces = (unsigned)least(pieces, PIECES_MAX - 1);
    pair->iov[pieces] = (struct iovec){pair->spill, FRAME_MAX};
    return link_readv(pair->link_fd, pair->iov, pieces + 1);
}

static void link_failed(struct net_pair *pair, int code)
{
    struct fault ignored;

    (void)ring_want_kicks(&pair->rx.ring, &ignored); /* try again then */
    atomic_store_explicit(&pair->error, code, memory_order_relaxed);
    worker_tell(&pair->worker);
}

/* Take the next frame in hand, if it is one for the driver. 1: go on; 0: there is none, or no buffer; -1: a fault. */
static int take(struct net_pair *pair, struct fault *fault)
{
    struct chain chain;
    uint8_t prefix[PREFIX_SIZE] = {0};
    uint64_t room;
    unsigned pieces;
    ssize_t size;
    const int got = next_buffer(pair, &chain, pair->iov, fault);

    if (got <= 0)
        return got;
    if (chain.writable_bytes < HEADER_SIZE) {
        ring_push(&pair->rx.ring, chain.head, 0); /* no buffer at all: back to the driver, empty */
        return 1;
    }
    pieces = chain.count - chain.readable;
    memmove(pair->iov, pair->iov + chain.readable, pieces * sizeof *pair->iov);
    pair->first_pieces = pieces;
    hold(pair, chain.head, chain.writable_bytes);
    room = chain.writable_bytes;
    if (pair->direct && pair->rules.mergeable)
        pieces = look_ahead(pair, pieces, &room);
    size = read_frame(pair, pieces);
    if (size < 0) {
        const int code = errno;
        put_back(pair);
        pair->link_empty = code == EAGAIN;
        if (!pair->link_empty)
            link_failed(pair, code);
        return 0;
    }
    pair->flood_frames++;
    if (pair->direct) {
        gather(prefix, pair->iov, pieces + 1, least((size_t)size, PREFIX_SIZE));
        settle(pair, (size_t)size);
    } else {
        memcpy(prefix, pair->spill, least((size_t)size, PREFIX_SIZE));
        pair->rest_at = 0;
        pair->rest_end = (size_t)size;
    }
    if (!rules_take_size(&pair->rules, prefix, (size_t)size) || ((size_t)size > room && !pair->rules.mergeable)) {
        count(pair, NET_RX_DROPPED, 1);
        put_back(pair);
    } else if (!rules_want(&pair->rules, prefix)) {
        count(pair, NET_RX_FILTERED, 1);
        put_back(pair);
    } else if (!pair->direct) {
        pair->rest_at = scatter(pair->iov, pair->first_pieces, 0, pair->spill, (size_t)size);
        pair->held[0].written = (uint32_t)pair->rest_at;
    }
    pair->direct = size > COPY_MAX && pair->kind != LINK_STREAM;
    return 1;
}

/* Bring the frame in hand to the driver as a whole. 1: done; 0: that must wait for more buffers; -1: a fault. */
static int complete(struct net_pair *pair, struct fault *fault)
{
    struct ring *ring = &pair->rx.ring;
    uint64_t size = 0;
    uint8_t buffers[2];

    while (pair->rest_at < pair->rest_end) {
        struct chain chain;
        size_t written;
        int got;

        if (pair->held_count == ring->size) { /* the driver's whole ring cannot hold it */
            count(pair, NET_RX_DROPPED, 1);
            put_back(pair);
            return 1;
        }
        got = next_buffer(pair, &chain, pair->iov + pair->first_pieces, fault);
        if (got <= 0)
            return got;
        written = scatter(chain.iov + chain.readable, chain.count - chain.readable, 0, pair->spill + pair->rest_at,
                          pair->rest_end - pair->rest_at);
        hold(pair, chain.head, written);
        pair->rest_at += written;
    }
    if (!pair->rules.checksums) /* flags say nothing that the driver did not ask for (§5.1.6.4.1) */
        scatter(pair->iov, pair->first_pieces, FLAGS, (const uint8_t[]){0}, 1);
    buffers[0] = (uint8_t)pair->held_count;
    buffers[1] = (uint8_t)(pair->held_count >> 8);
    scatter(pair->iov, pair->first_pieces, NUM_BUFFERS, buffers, sizeof buffers);
    for (unsigned i = 0; i < pair->held_count; i++) {
        ring_push(ring, pair->held[i].head, pair->held[i].written);
        size += pair->held[i].written;
    }
    pair->held_count = pair->first_pieces = 0;
    size -= HEADER_SIZE;
    count(pair, NET_RX, 1);
    count(pair, NET_BYTES_RECEIVED, size);
    bucket_take(&pair->net->rx_bytes, size);
    bucket_take(&pair->net->rx_frames, 1);
    return 1;
}

enum turn receive(struct net_pair *pair, uint64_t *wait_ns, struct fault *fault)
{
    int got = 1;

    pair->link_empty = false;
    ring_suppress_kicks(&pair->rx.ring);
    for (unsigned n = 0; n < TURN_FRAMES && got > 0; n++) {
        const uint64_t delay = delay_ns(&pair->net->rx_bytes, &pair->net->rx_frames);

        if (delay) {
            *wait_ns = least(*wait_ns, delay);
            got = 0;
        } else {
            if (!pair->held_count)
                got = take(pair, fault);
            if (pair->held_count)
                got = complete(pair, fault);
        }
    }
    queue_publish(&pair->rx);
    return got < 0 ? FAILED : got ? MORE : IDLE;
}
