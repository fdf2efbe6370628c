#include "blk_steps.h"

#include <errno.h>
#include <stdlib.h>

/* Begin everything in the ring: 1 if more may be there, 0 if not, -1 if the driver broke the ring. *timeout_ms is how
 * long the limits want us to sleep, -1: they do not. */
static int serve_ring(struct blk_queue *q, int *timeout_ms, struct fault *fault)
{
    struct ring *ring = &q->queue.ring;
    struct chain chain;

    *timeout_ms = -1;
    ring_suppress_kicks(ring);
    while (q->unused && !atomic_load_explicit(&q->stalled, memory_order_relaxed) && !worker_stopping(&q->worker)) {
        uint64_t delay = bucket_delay_ns(&q->disk->iops), other = bucket_delay_ns(&q->disk->bw);
        int popped;

        if (other > delay)
            delay = other;
        if (delay) {
            const uint64_t ms = delay / 1000000 + 1;
            *timeout_ms = ms < 1000 ? (int)ms : 1000;
            return 0;
        }
        popped = ring_pop(ring, &chain, q->iov, fault);
        if (!popped)
            return ring_want_kicks(ring, fault);
        if (popped < 0)
            return -1;
        steps_begin(q, &chain);
    }
    return 0;
}

static void *serve(void *argument)
{
    struct blk_queue *q = argument;
    struct fault fault;
    int more = 0;

    while (!worker_stopping(&q->worker) && more >= 0) {
        int timeout_ms;
        bool reaped = false;

        if (!atomic_load(&q->stalled))
            steps_retry(q);
        more = serve_ring(q, &timeout_ms, &fault);
        if (q->in_flight) {
            aio_flush(q->aio);
            reaped = steps_reap(q, false);
        }
        steps_publish(q);
        if (!more && !reaped)
            worker_wait(&q->worker, timeout_ms);
    }
    steps_reap(q, true);
    steps_publish(q);
    if (q->aio)
        aio_close(q->aio);
    q->aio = NULL;
    if (more < 0)
        worker_fail(&q->worker, &fault);
    return NULL;
}

/* -- Python's side ------------------------------------------------------------------------------------------------- */

struct blk_disk *blk_open(const struct blk_config *config)
{
    struct blk_disk *disk = calloc(1, sizeof *disk);

    if (disk) {
        disk->config = *config;
        atomic_init(&disk->no_wait, true);
        pthread_mutex_init(&disk->own_lock, NULL);
        bucket_init(&disk->iops);
        bucket_init(&disk->bw);
    }
    return disk;
}

void blk_close(struct blk_disk *disk)
{
    pthread_mutex_destroy(&disk->own_lock);
    free(disk);
}

void blk_limit(struct blk_disk *disk, uint64_t iops, uint64_t iops_burst, uint64_t bw, uint64_t bw_burst)
{
    bucket_set(&disk->iops, iops, iops_burst);
    bucket_set(&disk->bw, bw, bw_burst);
}

struct blk_queue *blk_start(struct blk_disk *disk, const struct ring_config *ring, const struct wiring *wiring,
                            const struct region *regions, size_t count, int event_fd)
{
    struct blk_queue *q = calloc(1, sizeof *q);
    int error;

    if (!q)
        return NULL;
    q->disk = disk;
    q->worker.wake_fd = q->worker.epoll_fd = -1;
    error = queue_init(&q->queue, ring, wiring, regions, count);
    if (!error)
        error = worker_init(&q->worker, event_fd);
    if (!error) {
        q->iov = calloc(ring_pieces(&q->queue.ring), sizeof *q->iov);
        q->requests = calloc(IN_FLIGHT_MAX, sizeof *q->requests);
        error = q->iov && q->requests ? worker_watch(&q->worker, wiring->kick_fd, true) : ENOMEM;
    }
    if (!error) {
        for (unsigned i = 0; i < IN_FLIGHT_MAX; i++) {
            q->requests[i].next = q->unused;
            q->unused = &q->requests[i];
        }
        error = worker_start(&q->worker, "blk", serve, q);
    }
    if (error) {
        blk_free(q);
        errno = error;
        return NULL;
    }
    q->running = true;
    return q;
}

void blk_stop(struct blk_queue *q)
{
    if (q->running)
        worker_stop(&q->worker);
    q->running = false;
}

int blk_go_on(struct blk_queue *q)
{
    int error;

    if (q->running)
        return 0;
    atomic_store(&q->worker.stopping, false);
    error = worker_start(&q->worker, "blk", serve, q);
    q->running = !error;
    return error;
}

bool blk_waits(const struct blk_queue *q)
{
    return q->parked;
}

void blk_free(struct blk_queue *q)
{
    blk_stop(q);
    for (struct blk_request *request = q->parked; request; request = request->next)
        free(request->saved);
    worker_destroy(&q->worker);
    queue_destroy(&q->queue);
    free(q->iov);
    free(q->requests);
    free(q);
}

bool blk_take_fault(struct blk_queue *q, struct fault *fault)
{
    return worker_take_fault(&q->worker, fault);
}

bool blk_take_event(struct blk_queue *q, struct blk_event *event)
{
    pthread_mutex_lock(&q->worker.lock);
    *event = q->event;
    q->event.trouble = BLK_NONE;
    pthread_mutex_unlock(&q->worker.lock);
    return event->trouble != BLK_NONE;
}

void blk_resume(struct blk_queue *q)
{
    atomic_store(&q->stalled, false);
    worker_wake(&q->worker);
}

void blk_rewire(struct blk_queue *q, int irq_fd, uint64_t flag)
{
    queue_rewire(&q->queue, irq_fd, flag);
}

void blk_count(const struct blk_queue *q, struct blk_counters *counters)
{
    uint64_t *const sums[KINDS] = {
        [KIND_READ] = &counters->read,
        [KIND_WRITE] = &counters->write,
        [KIND_FLUSH] = &counters->flush,
        [KIND_GET_ID] = &counters->get_id,
        [KIND_DISCARD] = &counters->discard,
        [KIND_WRITE_ZEROES] = &counters->write_zeroes,
        [KIND_UNSUPPORTED] = &counters->unsupported,
        [KIND_MALFORMED] = &counters->malformed,
    };

    for (int kind = 0; kind < KINDS; kind++)
        *sums[kind] += atomic_load_explicit(&q->kinds[kind], memory_order_relaxed);
    counters->bytes_read += atomic_load_explicit(&q->bytes_read, memory_order_relaxed);
    counters->bytes_written += atomic_load_explicit(&q->bytes_written, memory_order_relaxed);
    counters->errors += atomic_load_explicit(&q->errors, memory_order_relaxed);
}

uint16_t blk_next_avail(const struct blk_queue *q)
{
    return ring_next_avail(&q->queue.ring);
}

uint16_t blk_next_used(const struct blk_queue *q)
{
    return ring_next_used(&q->queue.ring);
}
