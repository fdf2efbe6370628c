#include "net.h"

enum { FULL_NS = 1000000 }; /* who waits for room looks so often whether there is any */

static enum sent transmit_frame(struct net_pair *pair, const struct chain *chain)
{
    const size_t size = chain->readable_bytes;

    if (size < FRAME_MIN || size > FRAME_MAX)
        return LOST;
    if (size > COPY_MAX && pair->kind != LINK_STREAM)
        return link_writev(pair->link_fd, pair->kind, chain->iov, chain->readable);
    gather(pair->staging, chain->iov, chain->readable, size);
    return link_write(pair->link_fd, pair->kind, pair->staging, size);
}

enum turn transmit(struct net_pair *pair, uint64_t *wait_ns, struct fault *fault)
{
    struct ring *ring = &pair->tx.ring;
    struct net *net = pair->net;
    struct iovec *iov = pair->iov + pair->first_pieces; /* a received frame may be in hand */
    int got = 1;

    ring_suppress_kicks(ring);
    for (unsigned n = 0; n < TURN_FRAMES; n++) {
        struct chain chain;
        enum sent sent;
        const uint64_t delay = delay_ns(&net->tx_bytes, &net->tx_frames);

        if (delay) {
            *wait_ns = least(*wait_ns, delay);
            queue_publish(&pair->tx);
            return IDLE;
        }
        got = ring_pop(ring, &chain, iov, fault);
        if (got <= 0)
            break;
        sent = transmit_frame(pair, &chain);
        if (sent == FULL) {
            ring_unpop(ring);
            *wait_ns = least(*wait_ns, FULL_NS);
            queue_publish(&pair->tx);
            return IDLE;
        }
        if (sent == SENT) {
            const uint64_t size = chain.readable_bytes - HEADER_SIZE;
            count(pair, NET_TX, 1);
            count(pair, NET_BYTES_SENT, size);
            bucket_take(&net->tx_bytes, size);
            bucket_take(&net->tx_frames, 1);
        } else {
            count(pair, NET_TX_DROPPED, 1);
        }
        ring_push(ring, chain.head, 0);
    }
    queue_publish(&pair->tx);
    if (!got)
        got = ring_want_kicks(ring, fault);
    return got < 0 ? FAILED : got ? MORE : IDLE;
}
