#include "worker.h"

#include <errno.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

static void signal_eventfd(int fd)
{
    const uint64_t one = 1;
    /* EAGAIN: the counter is full, so its reader is woken already. */
    ssize_t done = write(fd, &one, sizeof one);
    (void)done;
}

int queue_init(struct queue *queue, const struct ring_config *config, const struct wiring *wiring,
               const struct region *regions, size_t count)
{
    const int error = ring_init(&queue->ring, config, regions, count);

    if (error)
        return error;
    queue->kick_fd = wiring->kick_fd;
    queue->irq_fd = wiring->irq_fd;
    queue->flag = (uint8_t *)(uintptr_t)wiring->flag;
    return pthread_mutex_init(&queue->wire_lock, NULL);
}

void queue_destroy(struct queue *queue)
{
    pthread_mutex_destroy(&queue->wire_lock);
}

void queue_publish(struct queue *queue)
{
    if (!ring_publish(&queue->ring))
        return;
    pthread_mutex_lock(&queue->wire_lock);
    if (queue->flag)
        __atomic_store_n(queue->flag, 1, __ATOMIC_SEQ_CST);
    if (queue->irq_fd >= 0)
        signal_eventfd(queue->irq_fd);
    pthread_mutex_unlock(&queue->wire_lock);
}

void queue_rewire(struct queue *queue, int irq_fd, uint64_t flag)
{
    pthread_mutex_lock(&queue->wire_lock);
    queue->irq_fd = irq_fd;
    queue->flag = (uint8_t *)(uintptr_t)flag;
    pthread_mutex_unlock(&queue->wire_lock);
}

int worker_init(struct worker *worker, int event_fd)
{
    int error;

    worker->event_fd = event_fd;
    worker->fault.kind = FAULT_NONE;
    atomic_init(&worker->stopping, false);
    pthread_mutex_init(&worker->lock, NULL);
    worker->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    worker->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    error = worker->wake_fd < 0 || worker->epoll_fd < 0 ? errno : worker_watch(worker, worker->wake_fd, true);
    if (error)
        worker_destroy(worker);
    return error;
}

int worker_watch(struct worker *worker, int fd, bool edge)
{
    struct epoll_event event = {.events = EPOLLIN | (edge ? (uint32_t)EPOLLET : 0)};
    return epoll_ctl(worker->epoll_fd, EPOLL_CTL_ADD, fd, &event) ? errno : 0;
}

void worker_wait(struct worker *worker, int timeout_ms)
{
    struct epoll_event events[4];
    /* Interrupted or timed out: the caller looks at everything anyway. */
    (void)epoll_wait(worker->epoll_fd, events, 4, timeout_ms);
}

void worker_wake(struct worker *worker)
{
    signal_eventfd(worker->wake_fd);
}

int worker_start(struct worker *worker, const char *name, void *(*main)(void *), void *argument)
{
    sigset_t all, old;
    int error;

    sigfillset(&all); /* signals are the main thread's and the vCPUs' */
    pthread_sigmask(SIG_SETMASK, &all, &old);
    error = pthread_create(&worker->thread, NULL, main, argument);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (!error)
        pthread_setname_np(worker->thread, name);
    return error;
}

void worker_stop(struct worker *worker)
{
    atomic_store_explicit(&worker->stopping, true, memory_order_release);
    worker_wake(worker);
    pthread_join(worker->thread, NULL);
}

void worker_destroy(struct worker *worker)
{
    if (worker->wake_fd >= 0)
        close(worker->wake_fd);
    if (worker->epoll_fd >= 0)
        close(worker->epoll_fd);
    pthread_mutex_destroy(&worker->lock);
}

void worker_tell(struct worker *worker)
{
    signal_eventfd(worker->event_fd);
}

void worker_fail(struct worker *worker, const struct fault *fault)
{
    pthread_mutex_lock(&worker->lock);
    worker->fault = *fault;
    pthread_mutex_unlock(&worker->lock);
    worker_tell(worker);
}

bool worker_take_fault(struct worker *worker, struct fault *fault)
{
    pthread_mutex_lock(&worker->lock);
    *fault = worker->fault;
    worker->fault.kind = FAULT_NONE;
    pthread_mutex_unlock(&worker->lock);
    return fault->kind != FAULT_NONE;
}

uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000U + (uint64_t)now.tv_nsec;
}

void bucket_init(struct bucket *bucket)
{
    pthread_mutex_init(&bucket->lock, NULL);
    bucket->rate = bucket->burst = 0;
    bucket->tokens = 0;
    bucket->filled_ns = 0;
}

void bucket_set(struct bucket *bucket, uint64_t rate, uint64_t burst)
{
    pthread_mutex_lock(&bucket->lock);
    bucket->burst = burst;
    bucket->tokens = (double)burst;
    bucket->filled_ns = now_ns();
    __atomic_store_n(&bucket->rate, rate, __ATOMIC_RELAXED);
    pthread_mutex_unlock(&bucket->lock);
}

uint64_t bucket_delay_ns(struct bucket *bucket)
{
    uint64_t delay = 0;

    if (!__atomic_load_n(&bucket->rate, __ATOMIC_RELAXED))
        return 0;
    pthread_mutex_lock(&bucket->lock);
    if (bucket->rate) {
        const uint64_t now = now_ns();
        bucket->tokens += (double)(now - bucket->filled_ns) * (double)bucket->rate / 1e9;
        bucket->filled_ns = now;
        if (bucket->tokens > (double)bucket->burst)
            bucket->tokens = (double)bucket->burst;
        if (bucket->tokens < 1)
            delay = 1 + (uint64_t)((1 - bucket->tokens) * 1e9 / (double)bucket->rate);
    }
    pthread_mutex_unlock(&bucket->lock);
    return delay;
}

void bucket_take(struct bucket *bucket, uint64_t tokens)
{
    if (!__atomic_load_n(&bucket->rate, __ATOMIC_RELAXED))
        return;
    pthread_mutex_lock(&bucket->lock);
    bucket->tokens -= (double)tokens;
    pthread_mutex_unlock(&bucket->lock);
}
