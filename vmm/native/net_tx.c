#include "net.h"

#include <sys/uio.h>

static bool transmit_frame(struct net_pair *pair, const struct chain *chain)
{
    const size_t size = chain->readable_bytes;
    uint8_t copy[COPY_MAX];

    if (size < FRAME_MIN || size > FRAME_MAX)
        return false;
    if (size <= sizeof copy) {
        gather(copy, chain->iov, chain->readable, size);
        return write_tap(pair, copy, size) > 0;
    }
    return writev(pair->tap_fd, chain->iov, (int)chain->readable) > 0;
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
        const uint64_t delay = delay_ns(&net->tx_bytes, &net->tx_frames);

        if (delay) {
            *wait_ns = least(*wait_ns, delay);
            queue_publish(&pair->tx);
            return IDLE;
        }
        got = ring_pop(ring, &chain, iov, fault);
        if (got <= 0)
            break;
        if (transmit_frame(pair, &chain)) {
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
