/* frames OUT IN SECONDS: write 64-byte frames to the descriptor OUT as fast as it takes them, and read what comes out of IN,
 * each by a thread; prints how many came and how many nanoseconds that took. A frame has a 12-byte header before it. The
 * first ones, by which switches learn, are not counted. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { HEADER = 12, SIZE = HEADER + 64, WARM_MS = 200 };

static const unsigned char near[6] = {0x02, 0, 0, 0, 0, 1}, far[6] = {0x02, 0, 0, 0, 0, 2};
static atomic_bool stopping;
static int out_fd;

static unsigned long long now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (unsigned long long)now.tv_sec * 1000000000 + (unsigned long long)now.tv_nsec;
}

static void make_frame(unsigned char *frame, const unsigned char *to, const unsigned char *from)
{
    memset(frame, 0, SIZE);
    memcpy(frame + HEADER, to, 6);
    memcpy(frame + HEADER + 6, from, 6);
    frame[HEADER + 12] = 0x88;
    frame[HEADER + 13] = 0xb5;
}

static void await(int fd, short what)
{
    (void)poll(&(struct pollfd){fd, what, 0}, 1, 50);
}

static void *send_frames(void *unused)
{
    unsigned char frame[SIZE];

    make_frame(frame, far, near);
    while (!stopping)
        if (write(out_fd, frame, SIZE) < 0) {
            if (errno != EAGAIN && errno != EINTR) {
                perror("write");
                exit(1);
            }
            await(out_fd, POLLOUT);
        }
    return unused;
}

int main(int count, char **arguments)
{
    const int in_fd = count == 4 ? atoi(arguments[2]) : -1;
    unsigned char frame[2048];
    unsigned long long begin = 0, warm, end, frames = 0;
    pthread_t sender;

    if (in_fd < 0) {
        fprintf(stderr, "usage: frames OUT IN SECONDS\n");
        return 2;
    }
    out_fd = atoi(arguments[1]);
    make_frame(frame, near, far);
    if (write(in_fd, frame, SIZE) < 0 || pthread_create(&sender, NULL, send_frames, NULL)) {
        perror("frames");
        return 1;
    }
    warm = now_ns() + WARM_MS * 1000000ULL;
    end = warm + strtoull(arguments[3], NULL, 10) * 1000000000ULL;
    for (unsigned long long now; (now = now_ns()) < end;) {
        if (now >= warm && !begin) {
            begin = now;
            frames = 0;
        }
        if (read(in_fd, frame, sizeof frame) == SIZE)
            frames++;
        else
            await(in_fd, POLLIN);
    }
    end = now_ns();
    stopping = true;
    pthread_join(sender, NULL);
    printf("%llu %llu\n", frames, end - begin);
    return 0;
}
