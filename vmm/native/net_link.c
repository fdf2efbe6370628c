#include "net_link.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
    LENGTH_SIZE = 4,                    /* before a frame of a stream; it takes the end of the header's place */
    SKIPPED = HEADER_SIZE - LENGTH_SIZE, /* of the header */
    STALL_MS = 1000,                    /* a reader that holds up a half-written frame for so long is given up */
};

static uint32_t load_be32(const uint8_t *at)
{
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

/* Frames are read and written without libc's check for a cancelled thread: 3 % of the time of a small one. */

static ssize_t fail(int code)
{
    errno = code;
    return -1;
}

/* No frame is there as a whole: is the rest still to come? */
static ssize_t incomplete(int fd)
{
    struct pollfd end = {fd, POLLRDHUP, 0};
    return fail(poll(&end, 1, 0) > 0 ? EPIPE : EAGAIN);
}

/* A frame stays in the socket until all of it is there, so nothing is to be remembered between two reads: edges wake. */
static ssize_t stream_read(int fd, uint8_t *frame)
{
    uint8_t length[LENGTH_SIZE];
    const ssize_t got = recv(fd, length, sizeof length, MSG_PEEK | MSG_DONTWAIT);
    size_t size;
    int waiting = 0;

    if (got < 0)
        return -1;
    if (got < LENGTH_SIZE)
        return got ? incomplete(fd) : fail(EPIPE);
    size = load_be32(length);
    if (size < FRAME_MIN - HEADER_SIZE || size > FRAME_MAX - HEADER_SIZE)
        return fail(EPROTO);
    if (ioctl(fd, FIONREAD, &waiting) < 0)
        return -1;
    if ((size_t)waiting < LENGTH_SIZE + size)
        return incomplete(fd);
    if (recv(fd, frame + SKIPPED, LENGTH_SIZE + size, MSG_DONTWAIT) != (ssize_t)(LENGTH_SIZE + size))
        return fail(EPROTO);
    memset(frame, 0, HEADER_SIZE);
    return (ssize_t)(HEADER_SIZE + size);
}

ssize_t link_read(int fd, enum link_kind kind, uint8_t *frame)
{
    const ssize_t size = kind == LINK_STREAM ? stream_read(fd, frame) : syscall(SYS_read, fd, frame, FRAME_MAX);
    return size ? size : fail(EPIPE);
}

ssize_t link_readv(int fd, const struct iovec *iov, unsigned pieces)
{
    const ssize_t size = readv(fd, iov, (int)pieces);
    return size ? size : fail(EPIPE);
}

static enum sent outcome(enum link_kind kind, bool done)
{
    return done ? SENT : kind != LINK_TAP && errno == EAGAIN ? FULL : LOST;
}

/* Half a frame would make nonsense of all that follows: so the rest is waited for, or the stream ends. (Up to 48 KiB the
 * kernel takes a write to a Unix socket as a whole or not at all.) */
static enum sent stream_write(int fd, const uint8_t *data, size_t size)
{
    ssize_t sent = send(fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL);

    if (sent < 0)
        return outcome(LINK_STREAM, false);
    while (data += sent, size -= (size_t)sent) {
        struct pollfd room = {fd, POLLOUT, 0};

        if (poll(&room, 1, STALL_MS) <= 0 || (sent = send(fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL)) < 0) {
            shutdown(fd, SHUT_RDWR);
            return LOST;
        }
    }
    return SENT;
}

enum sent link_write(int fd, enum link_kind kind, uint8_t *frame, size_t size)
{
    const size_t length = size - HEADER_SIZE;

    if (kind != LINK_STREAM)
        return outcome(kind, syscall(SYS_write, fd, frame, size) > 0);
    for (int i = 0; i < LENGTH_SIZE; i++)
        frame[SKIPPED + i] = (uint8_t)(length >> (24 - 8 * i));
    return stream_write(fd, frame + SKIPPED, LENGTH_SIZE + length);
}

enum sent link_writev(int fd, enum link_kind kind, const struct iovec *iov, unsigned pieces)
{
    return outcome(kind, writev(fd, iov, (int)pieces) > 0);
}
