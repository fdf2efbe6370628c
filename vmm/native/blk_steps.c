#include "blk_overlay.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum {
    BATCH_REQUESTS = 16,     /* the driver sees at the latest after so many requests, … */
    BATCH_BYTES = 256 << 10, /* … or so many bytes, what is done */
    ZERO_BLOCK = 64 << 10,
};

/* What WRITE_ZEROES writes where the file system cannot make zeroes by itself. */
static _Alignas(4096) char zero_block[ZERO_BLOCK];

static const char *const step_names[] = {"", "read", "write", "flush", "discard", "zeroing"};

static void tell(struct blk_queue *q, enum blk_trouble trouble, const struct blk_request *request, int error)
{
    pthread_mutex_lock(&q->worker.lock);
    if (q->event.trouble < trouble)
        q->event = (struct blk_event){
            .trouble = trouble,
            .operation = step_names[request->step],
            .error = error,
            .offset = request->offset,
            .length = request->left,
        };
    pthread_mutex_unlock(&q->worker.lock);
    worker_tell(&q->worker);
}

void steps_publish(struct blk_queue *q)
{
    queue_publish(&q->queue);
    q->batch = 0;
    q->batch_bytes = 0;
}

/* Give the request back to the driver. */
static void finish(struct blk_queue *q, struct blk_request *request)
{
    if (request->status_at)
        *request->status_at = request->status;
    counter_add(&q->kinds[request->kind], 1);
    if (request->kind == KIND_READ)
        counter_add(&q->bytes_read, request->length);
    if (request->kind == KIND_WRITE)
        counter_add(&q->bytes_written, request->length);
    if (request->status && request->kind != KIND_MALFORMED)
        counter_add(&q->errors, 1);
    ring_push(&q->queue.ring, request->head, blk_written(request));
    q->batch++;
    q->batch_bytes += request->length;
    if (q->batch >= BATCH_REQUESTS || q->batch_bytes >= BATCH_BYTES)
        steps_publish(q);
}

/* Have the request write zeroes itself, as many at a time as it has room for pieces. */
static void write_zeroes(struct blk_request *request)
{
    uint64_t left = request->left;

    request->step = STEP_WRITE;
    request->iov = request->few;
    request->count = 0;
    while (left && request->count < FEW) {
        const size_t piece = left < ZERO_BLOCK ? left : ZERO_BLOCK;
        request->few[request->count++] = (struct iovec){zero_block, piece};
        left -= piece;
    }
}

static void skip(struct blk_request *request, uint64_t size)
{
    request->offset += size;
    request->left -= size;
    while (request->count && size >= request->iov->iov_len) {
        size -= request->iov->iov_len;
        request->iov++;
        request->count--;
    }
    if (size) {
        request->iov->iov_base = (char *)request->iov->iov_base + size;
        request->iov->iov_len -= size;
    }
}

/* A step ended with result: choose the next one. False if it failed. */
static bool advance(struct blk_queue *q, struct blk_request *request, long result)
{
    const bool moves = request->step == STEP_READ || request->step == STEP_WRITE;

    if (result == -EINTR || result == -EAGAIN)
        return true;
    /* EINVAL: a block device whose sectors are larger than ours cannot here. */
    if ((result == -EOPNOTSUPP || result == -EINVAL) && request->kind == KIND_WRITE_ZEROES && !moves) {
        if (request->step == STEP_PUNCH)
            request->step = STEP_ZERO;
        else
            write_zeroes(request);
        return true;
    }
    if (result < 0 || (moves && !result))
        return false;
    if (moves) {
        skip(request, (uint64_t)result);
        if (request->left) {
            if (!request->count)
                write_zeroes(request);
            return true;
        }
    }
    if (q->disk->config.sync_writes && request->step != STEP_READ && request->step != STEP_SYNC)
        request->step = STEP_SYNC;
    else
        request->step = STEP_NONE;
    return true;
}

/* Tell the driver and the user that the present step failed. */
static void give_up(struct blk_queue *q, struct blk_request *request, int error)
{
    tell(q, BLK_FAILED, request, error);
    request->status = STATUS_IOERR;
    request->step = STEP_NONE;
}

/* A step failed. True if the request is over, false if it is parked. A failed sync is never tried again: the kernel
 * has forgotten what it could not write, so a second try would succeed and mean nothing. */
static bool fail(struct blk_queue *q, struct blk_request *request, int error)
{
    if (q->disk->config.stop_on_error && request->step != STEP_READ && request->step != STEP_SYNC) {
        atomic_store(&q->stalled, true);
        tell(q, BLK_STALLED, request, error);
        return false;
    }
    give_up(q, request, error);
    return true;
}

static bool aligned(const struct blk_request *request, uint32_t alignment)
{
    uint64_t all = request->offset | request->left;

    for (unsigned i = 0; i < request->count; i++)
        all |= (uintptr_t)request->iov[i].iov_base | request->iov[i].iov_len;
    return !(all & (alignment - 1));
}

/* Leave of a read what one file has, until widen: that file. */
static int narrow(const struct blk_config *disk, struct blk_request *request)
{
    uint64_t run;
    unsigned piece = 0;
    const int fd = overlay_find(disk, request->offset, request->left, &run);

    while (run > request->iov[piece].iov_len)
        run -= request->iov[piece++].iov_len;
    request->cut = &request->iov[piece];
    request->cut_bytes = request->cut->iov_len - run;
    request->cut_count = request->count - piece - 1;
    request->cut->iov_len = run;
    request->count = piece + 1;
    return fd;
}

static void widen(struct blk_request *request)
{
    if (!request->cut)
        return;
    request->cut->iov_len += request->cut_bytes;
    request->count += request->cut_count;
    request->cut = NULL;
}

/* Do a read, or what is left of it in one file, if that need not wait: as aio_perform, -EAGAIN if it need. */
static long read_now(struct blk_disk *disk, struct blk_request *request)
{
    const int fd = disk->config.layer_count ? narrow(&disk->config, request) : disk->config.fd;
    const long result = aio_perform(request, fd, RWF_NOWAIT);

    widen(request);
    return result;
}

/* Do steps that need not wait until one does. What goes around the page cache waits, and what is not in it; a write
 * into the page cache seldom does, and handing it to a thread costs more than itself. All changes of an overlay are
 * done here, for they go together with those of its map.
 * True if the request is over; false if its step is to be done by blk_aio, on *fd, or to be parked (*fd negative). */
static bool proceed(struct blk_queue *q, struct blk_request *request, int *fd)
{
    const struct blk_config *disk = &q->disk->config;

    while (request->step != STEP_NONE) {
        const bool read = request->step == STEP_READ, over_others = disk->layer_count && !read;
        long result;

        *fd = disk->fd;
        if (!read && !over_others && request->step != STEP_WRITE)
            return false;
        if (disk->direct_fd >= 0 && aligned(request, disk->alignment)) {
            *fd = disk->direct_fd;
            return false;
        }
        if (read && !atomic_load_explicit(&q->disk->no_wait, memory_order_relaxed))
            return false;
        if (read)
            result = read_now(q->disk, request);
        else
            result = over_others ? overlay_change(q->disk, request) : aio_perform(request, disk->fd, 0);
        if (result == -EAGAIN && !over_others)
            return false;
        if (result == -EOPNOTSUPP && read) {
            atomic_store_explicit(&q->disk->no_wait, false, memory_order_relaxed);
            return false;
        }
        if (!advance(q, request, result) && !fail(q, request, (int)-result)) {
            *fd = -1;
            return false;
        }
    }
    return true;
}

/* Give the request an array of its own for what is left of its data, which stood in q->iov. */
static bool keep_pieces(struct blk_request *request)
{
    const size_t size = request->count * sizeof *request->iov;

    if (request->iov == request->few || !request->count)
        return true;
    if (request->count <= FEW) {
        memcpy(request->few, request->iov, size);
        request->iov = request->few;
        return true;
    }
    request->saved = malloc(size);
    if (!request->saved)
        return false;
    memcpy(request->saved, request->iov, size);
    request->iov = request->saved;
    return true;
}

static bool begin_aio(struct blk_queue *q)
{
    if (!q->aio) {
        q->aio = aio_open(IN_FLIGHT_MAX, q->disk->config.io_uring);
        if (q->aio)
            worker_watch(&q->worker, aio_fd(q->aio), true);
    }
    return q->aio;
}

/* Put a request where proceed wants it. */
static void place(struct blk_queue *q, struct blk_request *request, bool over, int fd)
{
    if (!over && fd < 0) {
        request->next = q->parked;
        q->parked = request;
        return;
    }
    if (!over && begin_aio(q)) {
        q->in_flight++;
        if (q->disk->config.layer_count)
            fd = narrow(&q->disk->config, request);
        aio_submit(q->aio, request, fd);
        return;
    }
    if (!over)
        give_up(q, request, ENOMEM);
    finish(q, request);
    free(request->saved);
    request->next = q->unused;
    q->unused = request;
}

static void go_on(struct blk_queue *q, struct blk_request *request)
{
    int fd = -1;
    const bool over = proceed(q, request, &fd);

    place(q, request, over, fd);
}

void steps_begin(struct blk_queue *q, const struct chain *chain)
{
    struct blk_request *request = q->unused;
    int fd = -1;
    bool over;

    q->unused = request->next;
    blk_parse(&q->disk->config, chain, request);
    bucket_take(&q->disk->iops, 1);
    bucket_take(&q->disk->bw, request->length);
    over = proceed(q, request, &fd);
    if (!over && !keep_pieces(request)) {
        give_up(q, request, ENOMEM);
        over = true;
    }
    place(q, request, over, fd);
}

bool steps_reap(struct blk_queue *q, bool wait)
{
    struct blk_request *request;
    bool any = false;

    while (q->in_flight && (request = aio_reap(q->aio, wait))) {
        q->in_flight--;
        any = true;
        widen(request);
        if (advance(q, request, request->result) || fail(q, request, (int)-request->result))
            go_on(q, request);
        else
            place(q, request, false, -1);
    }
    return any;
}

void steps_retry(struct blk_queue *q)
{
    struct blk_request *request = q->parked;

    q->parked = NULL;
    while (request) {
        struct blk_request *next = request->next;
        go_on(q, request);
        request = next;
    }
}
