/* One request of the driver: taken apart and checked (blk_request.c), then done in steps (blk.c). */
#pragma once

#include "blk_api.h"

enum { SECTOR = 512, ZEROES_MAX = 32 << 20, DISCARD_MAX = 1 << 30 }; /* the last two in bytes, one request */
enum { FEW = 4 };

enum blk_kind {
    KIND_READ,
    KIND_WRITE,
    KIND_FLUSH,
    KIND_GET_ID,
    KIND_DISCARD,
    KIND_WRITE_ZEROES,
    KIND_UNSUPPORTED,
    KIND_MALFORMED, /* no header, or not even room for a status */
    KINDS,
};

enum blk_status { STATUS_OK, STATUS_IOERR, STATUS_UNSUPP };

/* What to do next for a request; STEP_NONE: it is done. */
enum blk_step { STEP_NONE, STEP_READ, STEP_WRITE, STEP_SYNC, STEP_PUNCH, STEP_ZERO };

struct blk_request {
    struct blk_request *next; /* in whatever list it is */
    uint8_t *status_at;       /* NULL: there is no room for it */
    uint16_t head;
    uint8_t kind, step, status;
    uint64_t length;          /* of the data in bytes, as the driver has it */
    uint64_t room, read;      /* writable bytes but for the status, and how many of them were written */
    uint64_t offset, left;    /* of the present step, in bytes */
    long result;              /* of the step that was done last: bytes or -errno */
    struct iovec *iov;        /* what is left of the data */
    unsigned count;
    struct iovec *saved;      /* the array behind iov, where it is the request's own */
    struct iovec *cut;        /* the last piece of a read that is cut short, or NULL; */
    size_t cut_bytes;         /* the length it lost, … */
    unsigned cut_count;       /* … and the pieces behind it */
    struct iovec few[FEW];
};

/* Check the chain and say what to do. Data stays where it is: iov points into chain->iov. */
void blk_parse(const struct blk_config *disk, const struct chain *chain, struct blk_request *request);
/* What the used ring gets as written: bytes without a gap (§2.7.8.2). */
uint32_t blk_written(const struct blk_request *request);
