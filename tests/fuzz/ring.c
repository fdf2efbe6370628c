/* The ring parser. Uses: ring.c */
#include "guest.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct iovec iov[PIECES];
    struct ring ring;
    struct chain chain;
    struct fault fault;

    if (!open_guest(&ring, data, size))
        return 0;
    check(ring_pieces(&ring) <= PIECES);
    ring_suppress_kicks(&ring);
    for (int turn = 0; turn < 200; turn++) {
        const int popped = ring_pop(&ring, &chain, iov, &fault);
        if (popped < 0) {
            check_fault(&fault);
            break;
        }
        if (popped) {
            check_chain(&chain);
            ring_push(&ring, chain.head, (uint32_t)chain.writable_bytes);
            continue;
        }
        ring_publish(&ring);
        if (ring_want_kicks(&ring, &fault) <= 0)
            break;
    }
    ring_publish(&ring);
    return 0;
}
