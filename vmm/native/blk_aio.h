/* Steps of requests that may block, done elsewhere: by io_uring, or by threads where there is none. One thread's. */
#pragma once

#include "blk_request.h"

struct blk_aio;

/* For depth steps at a time; NULL with errno set. */
struct blk_aio *aio_open(unsigned depth, bool io_uring);
/* With nothing in flight. */
void aio_close(struct blk_aio *aio);
/* An eventfd that is signalled when something is done. */
int aio_fd(const struct blk_aio *aio);
/* Begin the request's step on the file fd, at the latest by the next aio_flush or aio_reap. */
void aio_submit(struct blk_aio *aio, struct blk_request *request, int fd);
void aio_flush(struct blk_aio *aio);
/* A request whose step is done, with its result; NULL if there is none yet. With wait, only if nothing is in flight. */
struct blk_request *aio_reap(struct blk_aio *aio, bool wait);

/* Do the request's step here and now: bytes or 0, or -errno. flags are preadv2's. */
long aio_perform(const struct blk_request *request, int fd, int flags);
