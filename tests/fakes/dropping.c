/* A disk with a volatile write cache: loaded before libc (LD_PRELOAD), it keeps what is written to the file $DROPPING in
 * memory until fdatasync. Killing the process is a power failure. With $DROPPING_EARLY it also writes some of it at any
 * time before, in any order, as a kernel does. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { SECTOR = 512 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char *content;
static bool *dirty;
static off_t size;
static int fd_of_ours;

static bool is_ours(int fd)
{
    const char *path = getenv("DROPPING");
    struct stat file, ours;

    if (!path || stat(path, &ours) || fstat(fd, &file) || file.st_ino != ours.st_ino || file.st_dev != ours.st_dev)
        return false;
    fd_of_ours = fd;
    if (!content) {
        size = ours.st_size;
        content = malloc((size_t)size);
        dirty = calloc((size_t)(size / SECTOR), sizeof *dirty);
        syscall(SYS_pread64, fd, content, size, 0);
    }
    return true;
}

static void write_back(off_t sector)
{
    if (dirty[sector])
        syscall(SYS_pwrite64, fd_of_ours, content + sector * SECTOR, SECTOR, sector * SECTOR);
    dirty[sector] = false;
}

static ssize_t copy(const struct iovec *iov, int count, off_t offset, bool write)
{
    ssize_t done = 0;

    for (int i = 0; i < count && offset < size; i++) {
        size_t piece = iov[i].iov_len;
        if (piece > (size_t)(size - offset))
            piece = (size_t)(size - offset);
        memcpy(write ? content + offset : iov[i].iov_base, write ? iov[i].iov_base : content + offset, piece);
        for (off_t at = offset; write && at < offset + (off_t)piece; at++)
            dirty[at / SECTOR] = true;
        offset += (off_t)piece;
        done += (ssize_t)piece;
    }
    for (int i = 0; write && getenv("DROPPING_EARLY") && i < 2; i++)
        write_back(rand() % (size / SECTOR));
    return done;
}

static ssize_t transfer(int fd, const struct iovec *iov, int count, off_t offset, int flags, bool write)
{
    ssize_t done;

    pthread_mutex_lock(&lock);
    if (is_ours(fd))
        done = copy(iov, count, offset, write);
    else
        done = syscall(write ? SYS_pwritev2 : SYS_preadv2, fd, iov, (long)count, offset, 0L, (long)flags);
    pthread_mutex_unlock(&lock);
    return done;
}

ssize_t preadv2(int fd, const struct iovec *iov, int count, off_t offset, int flags)
{
    return transfer(fd, iov, count, offset, flags, false);
}

ssize_t pwritev2(int fd, const struct iovec *iov, int count, off_t offset, int flags)
{
    return transfer(fd, iov, count, offset, flags, true);
}

ssize_t preadv(int fd, const struct iovec *iov, int count, off_t offset)
{
    return transfer(fd, iov, count, offset, 0, false);
}

ssize_t pwritev(int fd, const struct iovec *iov, int count, off_t offset)
{
    return transfer(fd, iov, count, offset, 0, true);
}

int fdatasync(int fd)
{
    pthread_mutex_lock(&lock);
    if (is_ours(fd))
        for (off_t sector = 0; sector < size / SECTOR; sector++)
            write_back(sector);
    pthread_mutex_unlock(&lock);
    return 0;
}

/* The names that programs built with 64-bit offsets use. */
__typeof__(preadv2) preadv64v2 __attribute__((alias("preadv2")));
__typeof__(pwritev2) pwritev64v2 __attribute__((alias("pwritev2")));
__typeof__(preadv) preadv64 __attribute__((alias("preadv")));
__typeof__(pwritev) pwritev64 __attribute__((alias("pwritev")));
