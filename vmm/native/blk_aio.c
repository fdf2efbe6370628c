#include "blk_aio.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>
#ifdef HAVE_LIBURING
#include <liburing.h>
#endif

enum { THREADS = 4 };

struct list {
    struct blk_request *first, **last;
};

struct blk_aio {
    int done_fd;
    unsigned in_flight;
#ifdef HAVE_LIBURING
    bool has_ring;
    struct io_uring ring;
#endif
    /* The threads. */
    pthread_mutex_t lock;
    pthread_cond_t wanted, finished;
    struct list todo, done;
    bool closing;
    unsigned threads;
    pthread_t thread[THREADS];
};

static int fallocate_mode(const struct blk_request *request)
{
    return FALLOC_FL_KEEP_SIZE | (request->step == STEP_PUNCH ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE);
}

long aio_perform(const struct blk_request *request, int fd, int flags)
{
    long result = -EINVAL;
    const int count = (int)request->count;
    const off_t offset = (off_t)request->offset;

    switch (request->step) {
    case STEP_READ:
        result = preadv2(fd, request->iov, count, offset, flags);
        break;
    case STEP_WRITE:
        result = pwritev2(fd, request->iov, count, offset, flags);
        break;
    case STEP_SYNC:
        result = fdatasync(fd);
        break;
    case STEP_PUNCH:
    case STEP_ZERO:
        result = fallocate(fd, fallocate_mode(request), offset, (off_t)request->left);
        break;
    }
    return result < 0 ? -errno : result;
}

/* -- threads ------------------------------------------------------------------------------------------------------- */

static void append(struct list *list, struct blk_request *request)
{
    request->next = NULL;
    *list->last = request;
    list->last = &request->next;
}

static struct blk_request *take_first(struct list *list)
{
    struct blk_request *request = list->first;

    if (request && !(list->first = request->next))
        list->last = &list->first;
    return request;
}

static void *perform_all(void *argument)
{
    struct blk_aio *aio = argument;

    pthread_mutex_lock(&aio->lock);
    for (;;) {
        struct blk_request *request = take_first(&aio->todo);
        if (request) {
            const uint64_t one = 1;
            ssize_t told;

            pthread_mutex_unlock(&aio->lock);
            request->result = aio_perform(request, (int)request->result, 0);
            pthread_mutex_lock(&aio->lock);
            append(&aio->done, request);
            pthread_cond_signal(&aio->finished);
            told = write(aio->done_fd, &one, sizeof one);
            (void)told;
        } else if (aio->closing) {
            break;
        } else {
            pthread_cond_wait(&aio->wanted, &aio->lock);
        }
    }
    pthread_mutex_unlock(&aio->lock);
    return NULL;
}

static int start_threads(struct blk_aio *aio)
{
    int error = 0;

    /* Made by a worker, so they inherit that all signals are blocked. */
    while (!error && aio->threads < THREADS) {
        error = pthread_create(&aio->thread[aio->threads], NULL, perform_all, aio);
        if (!error)
            pthread_setname_np(aio->thread[aio->threads++], "blk-io");
    }
    return aio->threads ? 0 : error;
}

static struct blk_request *reap_thread(struct blk_aio *aio, bool wait)
{
    struct blk_request *request;

    pthread_mutex_lock(&aio->lock);
    while (!(request = take_first(&aio->done)) && wait && aio->in_flight)
        pthread_cond_wait(&aio->finished, &aio->lock);
    pthread_mutex_unlock(&aio->lock);
    return request;
}

/* -- io_uring ------------------------------------------------------------------------------------------------------ */

#ifdef HAVE_LIBURING
static bool open_ring(struct blk_aio *aio, unsigned depth)
{
    /* Completions are the business of this thread alone, when it asks for them: no interrupts (Linux 6.1). The ring's
     * own descriptor does not tell of those, an eventfd does. */
    if (io_uring_queue_init(depth, &aio->ring, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN) &&
        io_uring_queue_init(depth, &aio->ring, 0))
        return false;
    if (io_uring_register_eventfd(&aio->ring, aio->done_fd)) {
        io_uring_queue_exit(&aio->ring);
        return false;
    }
    return true;
}

static void submit_ring(struct blk_aio *aio, struct blk_request *request, int fd)
{
    struct io_uring_sqe *entry = io_uring_get_sqe(&aio->ring);

    if (!entry) {
        io_uring_submit(&aio->ring);
        entry = io_uring_get_sqe(&aio->ring);
    }
    switch (request->step) {
    case STEP_READ:
        io_uring_prep_readv(entry, fd, request->iov, request->count, request->offset);
        break;
    case STEP_WRITE:
        io_uring_prep_writev(entry, fd, request->iov, request->count, request->offset);
        break;
    case STEP_SYNC:
        io_uring_prep_fsync(entry, fd, IORING_FSYNC_DATASYNC);
        break;
    case STEP_PUNCH:
    case STEP_ZERO:
        io_uring_prep_fallocate(entry, fd, fallocate_mode(request), (off_t)request->offset, (off_t)request->left);
        break;
    }
    io_uring_sqe_set_data(entry, request);
}

static struct blk_request *reap_ring(struct blk_aio *aio, bool wait)
{
    struct io_uring_cqe *entry = NULL;
    struct blk_request *request;

    while (io_uring_peek_cqe(&aio->ring, &entry)) {
        if (!wait || !aio->in_flight)
            return NULL;
        io_uring_submit_and_wait(&aio->ring, 1);
    }
    request = io_uring_cqe_get_data(entry);
    request->result = entry->res;
    io_uring_cqe_seen(&aio->ring, entry);
    return request;
}
#endif

/* -- either -------------------------------------------------------------------------------------------------------- */

struct blk_aio *aio_open(unsigned depth, bool io_uring)
{
    struct blk_aio *aio = calloc(1, sizeof *aio);
    int error;

    if (!aio)
        return NULL;
    aio->done_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (aio->done_fd < 0) {
        free(aio);
        return NULL;
    }
    pthread_mutex_init(&aio->lock, NULL);
    pthread_cond_init(&aio->wanted, NULL);
    pthread_cond_init(&aio->finished, NULL);
    aio->todo.last = &aio->todo.first;
    aio->done.last = &aio->done.first;
#ifdef HAVE_LIBURING
    aio->has_ring = io_uring && open_ring(aio, depth);
    if (aio->has_ring)
        return aio;
#else
    (void)depth;
    (void)io_uring;
#endif
    error = start_threads(aio);
    if (error) {
        aio_close(aio);
        errno = error;
        return NULL;
    }
    return aio;
}

void aio_close(struct blk_aio *aio)
{
#ifdef HAVE_LIBURING
    if (aio->has_ring)
        io_uring_queue_exit(&aio->ring);
    else
#endif
    {
        pthread_mutex_lock(&aio->lock);
        aio->closing = true;
        pthread_cond_broadcast(&aio->wanted);
        pthread_mutex_unlock(&aio->lock);
        while (aio->threads)
            pthread_join(aio->thread[--aio->threads], NULL);
    }
    close(aio->done_fd);
    pthread_cond_destroy(&aio->finished);
    pthread_cond_destroy(&aio->wanted);
    pthread_mutex_destroy(&aio->lock);
    free(aio);
}

int aio_fd(const struct blk_aio *aio)
{
    return aio->done_fd;
}

void aio_submit(struct blk_aio *aio, struct blk_request *request, int fd)
{
    aio->in_flight++;
#ifdef HAVE_LIBURING
    if (aio->has_ring) {
        submit_ring(aio, request, fd);
        return;
    }
#endif
    request->result = fd; /* the thread's, until it puts the result there */
    pthread_mutex_lock(&aio->lock);
    append(&aio->todo, request);
    pthread_cond_signal(&aio->wanted);
    pthread_mutex_unlock(&aio->lock);
}

void aio_flush(struct blk_aio *aio)
{
#ifdef HAVE_LIBURING
    if (aio->has_ring && aio->in_flight)
        io_uring_submit_and_get_events(&aio->ring);
#else
    (void)aio;
#endif
}

struct blk_request *aio_reap(struct blk_aio *aio, bool wait)
{
    struct blk_request *request;

#ifdef HAVE_LIBURING
    request = aio->has_ring ? reap_ring(aio, wait) : reap_thread(aio, wait);
#else
    request = reap_thread(aio, wait);
#endif
    if (request)
        aio->in_flight--;
    return request;
}
