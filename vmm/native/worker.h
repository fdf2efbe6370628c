/* What all workers have in common: a thread that sleeps on kicks, a queue with its interrupt, limits, and the way to
 * tell Python. The GIL is never taken here. */
#pragma once

#include "ring.h"

#include <pthread.h>
#include <stdatomic.h>

/* A ring with its doorbell and its interrupt. */
struct queue {
    struct ring ring;
    int kick_fd;
    pthread_mutex_t wire_lock; /* irq_fd and flag, which Python changes while the driver moves its interrupts */
    int irq_fd;
    uint8_t *flag;
};

/* 0 or an errno, as ring_init. */
int queue_init(struct queue *queue, const struct ring_config *config, const struct wiring *wiring,
               const struct region *regions, size_t count);
void queue_destroy(struct queue *queue);
/* Let the driver see what was pushed, and interrupt it if it wants that: once a batch. */
void queue_publish(struct queue *queue);
/* Any thread. When it returns nobody uses the old wire any more. */
void queue_rewire(struct queue *queue, int irq_fd, uint64_t flag);

/* What a thread waits for. Kicks are edges: there is nothing to read, so a wake-up is one system call. */
struct worker {
    pthread_t thread;
    int epoll_fd, wake_fd;
    int event_fd; /* Python's: it becomes readable when there is something to tell */
    atomic_bool stopping;
    pthread_mutex_t lock; /* what Python is told: below, and what the worker's kind adds */
    struct fault fault;
};

/* Make the descriptors; 0 or an errno. event_fd stays the caller's. */
int worker_init(struct worker *worker, int event_fd);
/* Have worker_wait return when fd is readable; edge: once per write to it. 0 or an errno. */
int worker_watch(struct worker *worker, int fd, bool edge);
/* Sleep until a watched descriptor is ready, worker_wake, or timeout_ms (-1: for ever). */
void worker_wait(struct worker *worker, int timeout_ms);
void worker_wake(struct worker *worker);
static inline bool worker_stopping(struct worker *worker)
{
    return atomic_load_explicit(&worker->stopping, memory_order_acquire);
}
/* Start main(argument) with all signals blocked; 0 or an errno. */
int worker_start(struct worker *worker, const char *name, void *(*main)(void *), void *argument);
/* Make main end, and wait for it. Not the worker's own thread. */
void worker_stop(struct worker *worker);
void worker_destroy(struct worker *worker);

/* Have Python look (worker_take_fault, …). */
void worker_tell(struct worker *worker);
/* The driver broke the ring: tell Python. */
void worker_fail(struct worker *worker, const struct fault *fault);
/* Python's: whether there is a fault; it is given once. */
bool worker_take_fault(struct worker *worker, struct fault *fault);

/* A counter that one thread adds to and all may read. */
typedef _Atomic uint64_t counter;
static inline void counter_add(counter *counter, uint64_t count)
{
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + count, memory_order_relaxed);
}

uint64_t now_ns(void); /* CLOCK_MONOTONIC */

/* A token bucket: rate tokens a second, burst at most. What costs more than there is goes, and leaves a debt, as long
 * as there is any token: so no request is too large. Any thread. */
struct bucket {
    pthread_mutex_t lock;
    uint64_t rate, burst; /* rate 0: no limit */
    double tokens;
    uint64_t filled_ns;
};

void bucket_init(struct bucket *bucket);
void bucket_set(struct bucket *bucket, uint64_t rate, uint64_t burst);
/* Nanoseconds until there is a token; 0: now. */
uint64_t bucket_delay_ns(struct bucket *bucket);
void bucket_take(struct bucket *bucket, uint64_t tokens);
