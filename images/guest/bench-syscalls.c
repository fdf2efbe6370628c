/* bench-syscalls [CALLS [PAGES]]: nanoseconds per getppid() and per first touch of an anonymous page. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096 };

static long long now_ns(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000ll + time.tv_nsec;
}

int main(int argc, char **argv)
{
    long calls = argc > 1 ? atol(argv[1]) : 1000;
    long pages = argc > 2 ? atol(argv[2]) : 256;
    if (calls < 1 || pages < 1) {
        fprintf(stderr, "usage: bench-syscalls [CALLS [PAGES]]\n");
        return 2;
    }

    long long start = now_ns();
    for (long i = 0; i < calls; i++)
        syscall(SYS_getppid);
    printf("getppid_ns %lld\n", (now_ns() - start) / calls);

    char *area = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (area == MAP_FAILED) {
        perror("mmap");
        return 1;
    }
    madvise(area, pages * PAGE, MADV_NOHUGEPAGE);
    start = now_ns();
    for (long i = 0; i < pages; i++)
        *(volatile char *)(area + i * PAGE) = 1;
    printf("touch_ns %lld\n", (now_ns() - start) / pages);
    return 0;
}
