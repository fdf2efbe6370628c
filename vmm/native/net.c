/* The worker of a queue pair: one thread that brings the driver's frames to what the card is plugged into, and back. A
 * frame is one read or write, and that is what it costs. Measured on a tap with 64 bytes: a read or write of one piece takes 0.4
 * and 0.6 us, readv and writev of two pieces 15 % more, a batch of them by io_uring as much as writev. So small frames
 * are copied into one piece, and large ones go to and from guest memory directly. */
#include "net.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <time.h>

enum {
    RECHECK_NS = 100000000, /* who waits for a limit looks this often whether it was changed */
    FLOOD_FRAMES = 16,      /* so many received frames in so short a time each are a flood */
    FLOOD_FRAME_NS = 8000,
    NAP_NS = 50000,         /* for frames to gather */
    BLINK_NS = 10000,       /* for a driver that is about to provide buffers */
};

size_t gather(uint8_t *to, const struct iovec *iov, unsigned pieces, size_t size)
{
    size_t done = 0;

    for (unsigned i = 0; i < pieces && done < size; i++) {
        const size_t part = least(iov[i].iov_len, size - done);
        memcpy(to + done, iov[i].iov_base, part);
        done += part;
    }
    return done;
}

uint64_t delay_ns(struct bucket *bytes, struct bucket *frames)
{
    const uint64_t a = bucket_delay_ns(bytes), b = bucket_delay_ns(frames);
    return a > b ? a : b;
}

static void follow_rules(struct net_pair *pair)
{
    struct net *net = pair->net;

    if (atomic_load_explicit(&net->version, memory_order_acquire) == pair->version)
        return;
    pthread_mutex_lock(&net->lock);
    pair->rules = net->rules;
    pair->version = atomic_load_explicit(&net->version, memory_order_relaxed);
    pthread_mutex_unlock(&net->lock);
}

/* Be woken by the link once, for events; 0 or an errno. */
static int watch_once(struct net_pair *pair, int operation, uint32_t events)
{
    struct epoll_event event = {.events = events | EPOLLONESHOT};
    return epoll_ctl(pair->worker.epoll_fd, operation, pair->link_fd, &event) ? errno : 0;
}

/* A stream wakes at edges instead: half a frame waits in it until the rest is there. */
static int watch_link(struct net_pair *pair)
{
    return pair->kind == LINK_STREAM ? worker_watch(&pair->worker, pair->link_fd, true)
                                     : watch_once(pair, EPOLL_CTL_ADD, 0);
}

/* Whether frames come in faster than it is good to be woken for each: two switches of context cost more than all else,
 * and where CPUs are scarce the sender has none meanwhile. Nor is the driver then asked for kicks when it has no
 * buffers: it is taking in frames, and will have some. */
static bool flooded(struct net_pair *pair)
{
    const uint64_t now = now_ns(), passed = now - pair->flood_since_ns;

    if (pair->flood_frames >= FLOOD_FRAMES || passed > FLOOD_FRAMES * FLOOD_FRAME_NS) {
        pair->flooded = passed < (uint64_t)pair->flood_frames * FLOOD_FRAME_NS;
        pair->flood_frames = 0;
        pair->flood_since_ns = now;
    }
    return pair->flooded;
}

/* Sleep until there is something to do. Only a link that was found empty is waited for: the frames in it would wake a
 * worker that has no buffers for them, or may not take them yet. */
static void await(struct net_pair *pair, uint64_t wait_ns)
{
    if (pair->link_empty && pair->kind != LINK_STREAM)
        watch_once(pair, EPOLL_CTL_MOD, EPOLLIN);
    worker_wait(&pair->worker, wait_ns == UINT64_MAX ? -1 : (int)(least(wait_ns, RECHECK_NS) / 1000000 + 1));
}

static void nap(const struct net_pair *pair)
{
    nanosleep(&(struct timespec){.tv_nsec = pair->link_empty ? NAP_NS : BLINK_NS}, NULL);
}

static void *pair_main(void *argument)
{
    struct net_pair *pair = argument;
    struct worker *worker = &pair->worker;

    prctl(PR_SET_TIMERSLACK, 1); /* naps are short */
    while (!worker_stopping(worker)) {
        struct fault fault;
        uint64_t wait_ns = UINT64_MAX;
        enum turn sent = IDLE, received = IDLE;
        bool was_flooded;

        follow_rules(pair);
        if (pair->has_tx)
            sent = transmit(pair, &wait_ns, &fault);
        if (pair->has_rx && sent != FAILED)
            received = receive(pair, &wait_ns, &fault);
        if (sent == FAILED || received == FAILED) {
            worker_fail(worker, &fault);
            break;
        }
        if (sent == MORE || received == MORE)
            continue;
        was_flooded = pair->flooded;
        if (flooded(pair) || was_flooded) /* one turn more after it, to ask for kicks */
            nap(pair);
        else
            await(pair, wait_ns);
    }
    return NULL;
}

/* ---- made and taken apart ---- */

struct net *net_open(void)
{
    struct net *net = calloc(1, sizeof *net);

    if (!net)
        return NULL;
    pthread_mutex_init(&net->lock, NULL);
    bucket_init(&net->rx_bytes);
    bucket_init(&net->rx_frames);
    bucket_init(&net->tx_bytes);
    bucket_init(&net->tx_frames);
    return net;
}

void net_close(struct net *net)
{
    free(net);
}

void net_set_rules(struct net *net, const struct net_rules *rules)
{
    pthread_mutex_lock(&net->lock);
    net->rules = *rules;
    atomic_fetch_add_explicit(&net->version, 1, memory_order_release);
    pthread_mutex_unlock(&net->lock);
}

void net_set_limits(struct net *net, const struct net_limit *rx, const struct net_limit *tx)
{
    bucket_set(&net->rx_bytes, rx->bandwidth, rx->bandwidth_burst);
    bucket_set(&net->rx_frames, rx->frames, rx->frames_burst);
    bucket_set(&net->tx_bytes, tx->bandwidth, tx->bandwidth_burst);
    bucket_set(&net->tx_frames, tx->frames, tx->frames_burst);
}

struct net_pair *net_pair_open(struct net *net, int link_fd, enum link_kind kind, int event_fd,
                               const struct region *regions, size_t count, const struct ring_config *rx,
                               const struct wiring *rx_wiring, const struct ring_config *tx,
                               const struct wiring *tx_wiring)
{
    struct net_pair *pair = calloc(1, sizeof *pair);
    size_t pieces = PIECES_MAX;
    int error = 0;

    if (!pair)
        return NULL;
    pair->net = net;
    pair->link_fd = link_fd;
    pair->kind = kind;
    pair->event_fd = event_fd;
    if (rx && !(error = queue_init(&pair->rx, rx, rx_wiring, regions, count))) {
        pair->has_rx = true;
        pieces += 2 * ring_pieces(&pair->rx.ring);
    }
    if (tx && !error && !(error = queue_init(&pair->tx, tx, tx_wiring, regions, count))) {
        pair->has_tx = true;
        pieces += ring_pieces(&pair->tx.ring);
    }
    if (!error) {
        pair->iov = malloc(pieces * sizeof *pair->iov);
        pair->held = malloc(((size_t)pair->rx.ring.size + 1) * sizeof *pair->held);
        pair->spill = malloc(FRAME_MAX);
        pair->staging = malloc(FRAME_MAX);
        error = pair->iov && pair->held && pair->spill && pair->staging ? 0 : ENOMEM;
    }
    if (error) {
        net_pair_close(pair);
        errno = error;
        return NULL;
    }
    return pair;
}

void net_pair_close(struct net_pair *pair)
{
    if (pair->rx.ring.size)
        queue_destroy(&pair->rx);
    if (pair->tx.ring.size)
        queue_destroy(&pair->tx);
    free(pair->iov);
    free(pair->held);
    free(pair->spill);
    free(pair->staging);
    free(pair);
}

int net_pair_start(struct net_pair *pair)
{
    struct worker *worker = &pair->worker;
    int error;

    if (pair->running)
        return 0;
    error = worker_init(worker, pair->event_fd);
    if (error)
        return error;
    if (pair->has_rx)
        error = watch_link(pair);
    if (!error && pair->has_rx)
        error = worker_watch(worker, pair->rx.kick_fd, true);
    if (!error && pair->has_tx)
        error = worker_watch(worker, pair->tx.kick_fd, true);
    if (!error)
        error = worker_start(worker, "net", pair_main, pair);
    pair->running = !error;
    if (error)
        worker_destroy(worker);
    return error;
}

void net_pair_stop(struct net_pair *pair)
{
    if (!pair->running)
        return;
    pair->running = false;
    worker_stop(&pair->worker);
    worker_destroy(&pair->worker);
}

void net_pair_forget(struct net_pair *pair, bool tx)
{
    if (tx)
        pair->has_tx = false;
    else
        pair->has_rx = false;
}

void net_pair_positions(const struct net_pair *pair, uint16_t positions[4])
{
    positions[0] = (uint16_t)(ring_next_avail(&pair->rx.ring) - pair->held_count);
    positions[1] = ring_next_used(&pair->rx.ring);
    positions[2] = ring_next_avail(&pair->tx.ring);
    positions[3] = ring_next_used(&pair->tx.ring);
}

void net_pair_rewire(struct net_pair *pair, bool tx, int irq_fd, uint64_t flag)
{
    queue_rewire(tx ? &pair->tx : &pair->rx, irq_fd, flag);
}

bool net_pair_take_fault(struct net_pair *pair, struct fault *fault)
{
    return worker_take_fault(&pair->worker, fault);
}

int net_pair_take_error(struct net_pair *pair)
{
    return atomic_exchange(&pair->error, 0);
}

uint64_t net_pair_counter(const struct net_pair *pair, int which)
{
    return atomic_load_explicit(&pair->counters[which], memory_order_relaxed);
}
