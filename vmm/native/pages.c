#include "pages_api.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

enum {
    PAGE = 4096,
    WORDS = PAGE / 8,
    LANES = 4,
    RUN_MAX = 256,   /* pages in one write */
    RUNS_MAX = 1024, /* in a file that has a base: each becomes a mapping, of which a process may have 65530 */
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

static void drop(uint8_t *bitmap, uint64_t page)
{
    bitmap[page / 8] = (uint8_t)(bitmap[page / 8] & ~(1U << page % 8));
}

/* The first run of pages of the bitmap that does not end before *begin: its length, 0 if there is none. */
static uint64_t run(const uint8_t *bitmap, uint64_t count, uint64_t *begin)
{
    uint64_t end;

    while (*begin < count && !has(bitmap, *begin))
        *begin += *begin % 8 || bitmap[*begin / 8] ? 1 : 8;
    for (end = *begin; end < count && has(bitmap, end);)
        end++;
    return end - *begin;
}

/* Add to the bitmap the pages that are this process's own: touched, in anonymous memory; changed, in a private mapping
 * of a file. 0 or an errno. */
static int touched(const void *host, uint64_t count, uint8_t *bitmap)
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

uint64_t pages_sum(const void *host, uint64_t count, const uint8_t *which)
{
    uint64_t sum = 0;

    for (uint64_t page = 0; page < count; page++)
        if (!which || has(which, page))
            sum += digest((const uint64_t *)host + page * WORDS, page);
    return sum;
}

int pages_map(int fd, uint64_t at, void *host, uint64_t count, const uint8_t *which)
{
    for (uint64_t begin = 0, pages; (pages = run(which, count, &begin)); begin += pages)
        if (mmap((uint8_t *)host + begin * PAGE, pages * PAGE, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, fd, (off_t)(at + begin * PAGE)) == MAP_FAILED)
            return errno;
    return 0;
}

int pages_fetch(void *host, uint64_t count, const uint8_t *which)
{
    for (uint64_t begin = 0, pages; (pages = run(which, count, &begin)); begin += pages)
        if (madvise((uint8_t *)host + begin * PAGE, pages * PAGE, MADV_POPULATE_READ))
            return errno;
    return 0;
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

/* Drop from the bitmap what is the same at base. */
static void compare(const uint8_t *host, const uint8_t *base, uint64_t count, uint8_t *which)
{
    for (uint64_t begin = 0, pages; (pages = run(which, count, &begin)); begin += pages)
        for (uint64_t page = begin; page < begin + pages; page++)
            if (!memcmp(host + page * PAGE, base + page * PAGE, PAGE))
                drop(which, page);
}

/* Add the pages between runs that are close to each other, until there are not too many runs. */
static void join(uint64_t count, uint8_t *which)
{
    for (uint64_t gap = 0, runs = RUNS_MAX + 1; runs > RUNS_MAX; gap = 2 * gap + 1) {
        uint64_t end = 0;

        runs = 0;
        for (uint64_t begin = 0, pages; (pages = run(which, count, &begin)); begin = end) {
            if (runs && begin - end <= gap)
                while (end < begin)
                    add(which, end++);
            else
                runs++;
            end = begin + pages;
        }
    }
}

/* Write those of the pages that are not of zeroes; *sum becomes the checksum of all. 0 or an errno. */
static int write_pages(int fd, uint64_t at, const uint8_t *host, uint64_t count, const uint8_t *which, uint64_t *sum)
{
    uint64_t begin = 0, pages = 0; /* of the run that is not written yet */
    int error = 0;

    *sum = 0;
    for (uint64_t page = 0; page < count && !error; page++) {
        uint64_t part = 0;

        if (which[page / 8] && has(which, page))
            part = digest((const uint64_t *)(const void *)host + page * WORDS, page);
        *sum += part;
        if (pages && (!part || pages == RUN_MAX)) {
            error = write_all(fd, host + begin * PAGE, pages * PAGE, at + begin * PAGE);
            pages = 0;
        }
        if (part && !pages++)
            begin = page;
    }
    if (pages && !error)
        error = write_all(fd, host + begin * PAGE, pages * PAGE, at + begin * PAGE);
    return error;
}

int pages_write_apart(int fd, uint64_t at, const void *host, const void *base, uint64_t count, uint8_t *which,
                      uint64_t *sum)
{
    const pid_t parent = getpid(), child = fork();
    int error;

    if (child)
        return child < 0 ? -errno : child;
    /* Other threads may have held any lock: from here on system calls only. */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(ESRCH);
    error = touched(host, count, which);
    if (!error && base) {
        compare(host, base, count, which);
        join(count, which);
    }
    _exit(error ? error : write_pages(fd, at, host, count, which, sum));
}
