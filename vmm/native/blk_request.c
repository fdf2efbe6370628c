#include "blk_request.h"

#include <string.h>

enum {
    TYPE_IN = 0,
    TYPE_OUT = 1,
    TYPE_FLUSH = 4,
    TYPE_GET_ID = 8,
    TYPE_DISCARD = 11,
    TYPE_WRITE_ZEROES = 13,
    UNMAP = 1, /* flag of discards and zeroes */
};

/* §5.2.6. The sector's place is that of the header; discards have a segment of their own. */
struct header {
    uint32_t type, reserved;
    uint64_t sector;
};

struct segment {
    uint64_t sector;
    uint32_t sectors, flags;
};

struct pieces {
    struct iovec *iov;
    unsigned count;
};

/* Leave the first size bytes of the pieces out. The caller knows that they hold as many. */
static void skip(struct pieces *pieces, uint64_t size)
{
    while (size && size >= pieces->iov->iov_len) {
        size -= pieces->iov->iov_len;
        pieces->iov++;
        pieces->count--;
    }
    if (size) {
        pieces->iov->iov_base = (char *)pieces->iov->iov_base + size;
        pieces->iov->iov_len -= size;
    }
}

/* Copy the first size bytes out of the pieces, once: the guest may change them meanwhile. As for skip. */
static void take(struct pieces *pieces, void *data, size_t size)
{
    char *to = data;

    while (size) {
        const size_t piece = size < pieces->iov->iov_len ? size : pieces->iov->iov_len;
        memcpy(to, pieces->iov->iov_base, piece);
        to += piece;
        size -= piece;
        skip(pieces, piece);
    }
    __asm__ volatile("" ::: "memory"); /* what is checked is the copy, whatever the compiler thinks of it */
}

/* Copy data into the pieces, as much as they hold; how much that was. */
static uint64_t scatter(const struct pieces *pieces, const char *data, size_t size)
{
    size_t done = 0;

    for (unsigned i = 0; i < pieces->count && done < size; i++) {
        const size_t left = size - done;
        const size_t piece = left < pieces->iov[i].iov_len ? left : pieces->iov[i].iov_len;
        memcpy(pieces->iov[i].iov_base, data + done, piece);
        done += piece;
    }
    return done;
}

/* Whether length bytes from sector on are whole sectors of the disk. */
static bool within(const struct blk_config *disk, uint64_t sector, uint64_t length)
{
    return length % SECTOR == 0 && length <= disk->size_bytes && sector <= (disk->size_bytes - length) / SECTOR;
}

static void transfer(struct blk_request *request, enum blk_step step, uint64_t sector, const struct pieces *data)
{
    request->offset = sector * SECTOR;
    request->left = request->length;
    request->iov = data->iov;
    request->count = data->count;
    request->step = request->length ? step : STEP_NONE;
}

/* DISCARD and WRITE_ZEROES, of one segment (§5.2.6.2). */
static void parse_segment(const struct blk_config *disk, struct blk_request *request, struct pieces *data)
{
    const bool zero = request->kind == KIND_WRITE_ZEROES;
    struct segment segment;
    uint64_t length;

    if (request->length != sizeof segment) {
        request->status = STATUS_IOERR;
        return;
    }
    take(data, &segment, sizeof segment);
    length = (uint64_t)segment.sectors * SECTOR;
    if (segment.flags & ~(zero ? (uint32_t)UNMAP : 0)) {
        request->status = STATUS_UNSUPP;
    } else if (disk->readonly || length > (uint64_t)(zero ? ZEROES_MAX : DISCARD_MAX) ||
               !within(disk, segment.sector, length)) {
        request->status = STATUS_IOERR;
    } else if (length) {
        request->step = zero && !(segment.flags & UNMAP) ? STEP_ZERO : STEP_PUNCH;
        request->offset = segment.sector * SECTOR;
        request->left = length;
    }
}

void blk_parse(const struct blk_config *disk, const struct chain *chain, struct blk_request *request)
{
    struct pieces out = {chain->iov, chain->readable};
    struct pieces in = {chain->iov + chain->readable, chain->count - chain->readable};
    struct header header;

    memset(request, 0, offsetof(struct blk_request, few));
    request->head = chain->head;
    request->kind = KIND_MALFORMED;
    if (!in.count)
        return;
    request->status_at = (uint8_t *)in.iov[in.count - 1].iov_base + in.iov[in.count - 1].iov_len - 1;
    if (!--in.iov[in.count - 1].iov_len)
        in.count--;
    request->room = chain->writable_bytes - 1;
    request->status = STATUS_IOERR;
    if (chain->readable_bytes < sizeof header)
        return;

    take(&out, &header, sizeof header);
    request->status = STATUS_OK;
    request->length = chain->readable_bytes - sizeof header;
    switch (header.type) {
    case TYPE_IN:
        request->kind = KIND_READ;
        request->length = request->room;
        if (within(disk, header.sector, request->length))
            transfer(request, STEP_READ, header.sector, &in);
        else
            request->status = STATUS_IOERR;
        return;
    case TYPE_OUT:
        request->kind = KIND_WRITE;
        if (!disk->readonly && within(disk, header.sector, request->length))
            transfer(request, STEP_WRITE, header.sector, &out);
        else
            request->status = STATUS_IOERR;
        return;
    case TYPE_FLUSH:
        request->kind = KIND_FLUSH;
        request->step = disk->flush ? STEP_SYNC : STEP_NONE;
        return;
    case TYPE_GET_ID:
        request->kind = KIND_GET_ID;
        request->read = scatter(&in, disk->serial, sizeof disk->serial);
        return;
    case TYPE_DISCARD:
    case TYPE_WRITE_ZEROES:
        request->kind = header.type == TYPE_DISCARD ? KIND_DISCARD : KIND_WRITE_ZEROES;
        if (header.type == TYPE_DISCARD ? disk->discard : disk->write_zeroes)
            parse_segment(disk, request, &out);
        else
            request->status = STATUS_UNSUPP;
        return;
    default:
        request->kind = KIND_UNSUPPORTED;
        request->status = STATUS_UNSUPP;
    }
}

uint32_t blk_written(const struct blk_request *request)
{
    const uint64_t read = request->kind == KIND_READ && request->status == STATUS_OK ? request->room : request->read;

    if (!request->status_at)
        return 0;
    return (uint32_t)(read == request->room ? read + 1 : read);
}
