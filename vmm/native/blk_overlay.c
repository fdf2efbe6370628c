#include "blk_overlay.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

enum { BLOCK = 4096, PAGE_BLOCKS = 8 * BLOCK };

static bool has(const struct blk_layer *layer, uint64_t block)
{
    return !layer->own || (__atomic_load_n(&layer->own[block / 8], __ATOMIC_ACQUIRE) >> block % 8 & 1);
}

static const struct blk_layer *layer_of(const struct blk_config *disk, uint64_t block)
{
    const struct blk_layer *layer = disk->layers;

    while (layer < disk->layers + disk->layer_count - 1 && !has(layer, block))
        layer++;
    return layer;
}

int overlay_find(const struct blk_config *disk, uint64_t offset, uint64_t size, uint64_t *run)
{
    const struct blk_layer *layer = layer_of(disk, offset / BLOCK);
    uint64_t found = BLOCK - offset % BLOCK;

    while (found < size && layer_of(disk, (offset + found) / BLOCK) == layer)
        found += BLOCK;
    *run = found < size ? found : size;
    return layer->fd;
}

/* All of a piece of the map or of a block, in a file that we have open: 0 or -errno. */
static long move(int fd, char *data, size_t size, uint64_t offset, bool write)
{
    while (size) {
        const struct iovec piece = {data, size};
        const ssize_t done =
            write ? pwritev2(fd, &piece, 1, (off_t)offset, 0) : preadv2(fd, &piece, 1, (off_t)offset, 0);

        if (done < 0 && errno != EINTR)
            return -errno;
        if (!done)
            return -EIO; /* the file has shrunk */
        if (done > 0) {
            data += done;
            size -= (size_t)done;
            offset += (uint64_t)done;
        }
    }
    return 0;
}

/* Copy the bytes of one block that a change leaves alone, unless the top has them: 0 or -errno. */
static long fill(const struct blk_config *disk, uint64_t start, uint64_t end)
{
    char rest[BLOCK];
    const size_t size = (size_t)(end - start);
    uint64_t run;
    long error;

    if (start >= end || has(disk->layers, start / BLOCK))
        return 0;
    error = move(overlay_find(disk, start, size, &run), rest, size, start, false);
    return error ? error : move(disk->layers->fd, rest, size, start, true);
}

/* The blocks from first on, up to last, are the top's. Before that, have room in its file for the map: so a full disk
 * fails the write, and not a flush. 0 or -errno. */
static long mark(const struct blk_config *disk, uint64_t first, uint64_t last)
{
    if (disk->dirty)
        for (uint64_t page = first / PAGE_BLOCKS; page <= last / PAGE_BLOCKS; page++) {
            if (!disk->dirty[page] && fallocate(disk->layers->fd, FALLOC_FL_KEEP_SIZE,
                                                (off_t)(disk->map_at + page * BLOCK), BLOCK) &&
                errno != EOPNOTSUPP)
                return -errno;
            disk->dirty[page] = 1;
        }
    for (uint64_t block = first; block <= last; block++)
        __atomic_fetch_or(&disk->layers->own[block / 8], (uint8_t)(1 << block % 8), __ATOMIC_RELEASE);
    return 0;
}

static bool all_ours(const struct blk_config *disk, uint64_t start, uint64_t end)
{
    for (uint64_t block = start / BLOCK; block * BLOCK < end; block++)
        if (!has(disk->layers, block))
            return false;
    return true;
}

/* Bring the data to the disk, then the map. No block becomes the top's meanwhile, so the map has none whose data is not
 * there. Data that is lost in between stays lost: then the map in the file is left as it is. */
static long sync_all(const struct blk_config *disk)
{
    const int fd = disk->layers->fd;
    bool wrote = false;
    long error = 0;

    if (*disk->failed || fdatasync(fd)) {
        error = *disk->failed ? -EIO : -errno;
        *disk->failed = 1;
        return error;
    }
    for (uint64_t page = 0; !error && page < disk->map_pages; page++)
        if (disk->dirty[page]) {
            error = move(fd, (char *)disk->layers->own + page * BLOCK, BLOCK, disk->map_at + page * BLOCK, true);
            wrote = true;
        }
    if (error || !wrote)
        return error;
    if (fdatasync(fd)) {
        error = -errno;
        *disk->failed = 1;
        return error;
    }
    memset(disk->dirty, 0, disk->map_pages);
    return 0;
}

/* A change of which the top does not have all blocks. What fails leaves the blocks to whom they belong: a reader sees
 * nothing of it. */
static long take_over(const struct blk_config *disk, const struct blk_request *request)
{
    const uint64_t start = request->offset;
    long result = fill(disk, start - start % BLOCK, start), error;
    uint64_t end, last;

    if (!result)
        result = aio_perform(request, disk->layers->fd, 0);
    end = start + (request->step == STEP_WRITE ? (uint64_t)result : request->left);
    if (result < 0 || end == start)
        return result;
    last = (end - 1) / BLOCK * BLOCK + BLOCK;
    error = fill(disk, end, last < disk->size_bytes ? last : disk->size_bytes);
    if (!error)
        error = mark(disk, start / BLOCK, (end - 1) / BLOCK);
    return error ? error : result;
}

long overlay_change(struct blk_disk *disk, const struct blk_request *request)
{
    const struct blk_config *config = &disk->config;
    long result;

    if (request->step != STEP_SYNC && all_ours(config, request->offset, request->offset + request->left))
        return aio_perform(request, config->layers->fd, 0);
    pthread_mutex_lock(&disk->own_lock);
    result = request->step == STEP_SYNC ? sync_all(config) : take_over(config, request);
    pthread_mutex_unlock(&disk->own_lock);
    return result;
}
