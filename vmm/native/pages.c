#include "pages_api.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/prctl.h>
#include <unistd.h>

enum {
    PAGE = 4096,
    WORDS = PAGE / 8,
    LANES = 4,
    RUN_MAX = 256,   /* pages in one write */
    ENTRIES = 1024,  /* of the page map, read at once */
};

/* Documentation/admin-guide/mm/pagemap.rst */
#define PM_PRESENT (UINT64_C(1) << 63)
#define PM_SWAP (UINT64_C(1) << 62)
#define PM_FILE (UINT64_C(1) << 61)

static bool has(const uint8_t *bitmap, uint64_t page)
{
    return bitmap[page / 8] >> page % 8 & 1;
}

static void add(uint8_t *bitmap, uint64_t page)
{
    bitmap[page / 8] = (uint8_t)(bitmap[page / 8] | 1U << page % 8);
}

int pages_touched(const void *host, uint64_t count, uint8_t *bitmap)
{
    const int map = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    const uint64_t first = (uint64_t)(uintptr_t)host / PAGE;
    uint64_t entries[ENTRIES];
    int error = map < 0 ? errno : 0;

    for (uint64_t page = 0; !error && page < count;) {
        const uint64_t wanted = count - page < ENTRIES ? count - page : ENTRIES;
        const ssize_t got = pread(map, entries, wanted * 8, (off_t)((first + page) * 8));

        if (got < 8) {
            error = got < 0 ? errno : EIO;
            break;
        }
        for (uint64_t i = 0; i < (uint64_t)got / 8; i++, page++)
            if (entries[i] & (PM_PRESENT | PM_SWAP) && !(entries[i] & PM_FILE))
                add(bitmap, page);
    }
    if (map >= 0)
        close(map);
    return error;
}

/* What a page adds to the sum; 0 for a page of zeroes. Where it is counts. */
static uint64_t digest(const uint64_t *words, uint64_t page)
{
    uint64_t lanes[LANES] = {0}, any = 0, sum = page * UINT64_C(0x9E3779B97F4A7C15) | 1;

    for (unsigned i = 0; i < WORDS; i += LANES)
        for (unsigned lane = 0; lane < LANES; lane++) {
            any |= words[i + lane];
            lanes[lane] = (lanes[lane] ^ words[i + lane]) * UINT64_C(0xFF51AFD7ED558CCD);
            lanes[lane] ^= lanes[lane] >> 32;
        }
    if (!any)
        return 0;
    for (unsigned lane = 0; lane < LANES; lane++)
        sum = (sum ^ lanes[lane] ^ sum >> 29) * UINT64_C(0xC4CEB9FE1A85EC53);
    return sum | 1;
}

uint64_t pages_sum(const void *host, uint64_t count)
{
    uint64_t sum = 0;

    for (uint64_t page = 0; page < count; page++)
        sum += digest((const uint64_t *)host + page * WORDS, page);
    return sum;
}

static int write_all(int fd, const uint8_t *data, uint64_t size, uint64_t at)
{
    while (size) {
        const ssize_t done = pwrite(fd, data, size, (off_t)at);

        if (done < 0 && errno != EINTR)
            return errno;
        if (done > 0) {
            data += done;
            at += (uint64_t)done;
            size -= (uint64_t)done;
        }
    }
    return 0;
}

int pages_write(int fd, uint64_t at, const void *host, uint64_t count, const uint8_t *wanted, uint64_t *sum)
{
    uint64_t begin = 0, pages = 0; /* of the run that is not written yet */
    int error = 0;

    *sum = 0;
    for (uint64_t page = 0; page < count && !error; page++) {
        uint64_t part = 0;

        if (wanted[page / 8] && has(wanted, page))
            part = digest((const uint64_t *)host + page * WORDS, page);
        *sum += part;
        if (pages && (!part || pages == RUN_MAX)) {
            error = write_all(fd, (const uint8_t *)host + begin * PAGE, pages * PAGE, at + begin * PAGE);
            pages = 0;
        }
        if (part && !pages++)
            begin = page;
    }
    if (pages && !error)
        error = write_all(fd, (const uint8_t *)host + begin * PAGE, pages * PAGE, at + begin * PAGE);
    return error;
}

int pages_write_apart(int fd, uint64_t at, const void *host, uint64_t count, const uint8_t *wanted, uint64_t *sum)
{
    const pid_t parent = getpid(), child = fork();

    if (child)
        return child < 0 ? -errno : child;
    /* Other threads may have held any lock: from here on system calls only. */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    _exit(getppid() != parent ? ESRCH : pages_write(fd, at, host, count, wanted, sum));
}
