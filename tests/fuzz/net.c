/* A queue pair on a hostile ring, and the headers of frames. Uses: net.c net_link.c net_rules.c net_rx.c net_tx.c ring.c worker.c */
#include "guest.h"
#include "net.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

enum { IN_HAND = PIECES_MAX + 3 * PIECES };

static int tap[2] = {-1, -1};

static void send_frame(const uint8_t *header, uint8_t size)
{
    static const size_t sizes[] = {1, 12, 25, 26, 60, 1526, 2048, 2049, 9000, 65000, FRAME_MAX};
    static uint8_t frame[FRAME_MAX];

    memcpy(frame, header, PREFIX_SIZE);
    /* A full tap drops, as this does. */
    (void)!write(tap[1], frame, sizes[size % (sizeof sizes / sizeof *sizes)]);
}

/* What the driver sent, and what it left unread. */
static void drain(void)
{
    static uint8_t frame[FRAME_MAX + 1];
    ssize_t size;

    while ((size = read(tap[1], frame, sizeof frame)) >= 0)
        check(size >= FRAME_MIN && size <= FRAME_MAX);
    while (read(tap[0], frame, sizeof frame) >= 0)
        ;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct iovec iov[IN_HAND];
    static struct held held[65];
    static uint8_t spill[FRAME_MAX], staging[FRAME_MAX];
    static struct net *net;
    struct net_pair pair = {.iov = iov, .held = held, .spill = spill, .staging = staging};
    struct queue *queue;
    struct fault fault;

    if (!net)
        check((net = net_open()) && !socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, tap));
    if (size < PREFIX_SIZE + 8)
        return 0;
    pair.net = net;
    pair.link_fd = tap[0];
    pair.rules.mergeable = data[0] & 1;
    pair.rules.checksums = data[0] & 2;
    pair.rules.segments = data[0] & 4;
    pair.rules.promiscuous = data[0] & 8;
    pair.direct = data[0] & 16;
    pair.rules.whole_max = data[0] & 32 ? 1530 : FRAME_MAX;
    pair.rules.address = 0x563412005452;
    queue = data[0] & 64 ? &pair.tx : &pair.rx;
    queue->irq_fd = -1;
    pthread_mutex_init(&queue->wire_lock, NULL);
    if (!open_guest(&queue->ring, data + 4 + PREFIX_SIZE, size - 4 - PREFIX_SIZE))
        return 0;
    for (int turn = 0; turn < 6; turn++) {
        uint64_t wait_ns = UINT64_MAX;
        enum turn left;

        for (int n = 1; n < 4; n++)
            send_frame(data + 4, data[n]);
        left = (queue == &pair.tx ? transmit : receive)(&pair, &wait_ns, &fault);
        check(pair.held_count <= queue->ring.size && pair.rest_at <= pair.rest_end && wait_ns == UINT64_MAX);
        drain();
        if (left == FAILED) {
            check_fault(&fault);
            break;
        }
    }
    pthread_mutex_destroy(&queue->wire_lock);
    return 0;
}
