/* A connection of the host, and the frames that go out on it. */
#ifndef CONNECTION_H
#define CONNECTION_H

#include "../guest/sys.h"
#include "protocol.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <sys/socket.h>

#define CONNECTIONS 16
#define HEADER 8
#define PATH_BYTES 4096
#define TEMPORARY ".pyvmm-A" /* and on, a letter for each slot */

enum { SOCKET, INPUT, PROCESS, OUTPUT, ERRORS, FILES };

struct connection {
    int fd[FILES];               /* by its place in the poll set; -1: none */
    int file;                    /* being put or got; -1: none */
    int pid;                     /* of the command, or of a sync; 0: none */
    int ended;                   /* whether that process has */
    unsigned left[FILES];        /* of OUTPUT and ERRORS, once it has: bytes that are still to be forwarded */
    enum frame busy;             /* EXEC, PUT, GET or SYNC while that goes on, else 0 */
    unsigned in, done, out, off; /* bytes in in_data and of its first frame already used; in out_data and already sent */
    unsigned mode;
    char path[PATH_BYTES], temporary[PATH_BYTES + sizeof TEMPORARY];
    char in_data[HEADER + FRAME_MAX], out_data[HEADER + FRAME_MAX];
};

static struct connection connections[CONNECTIONS];

void *memmove(void *to, const void *from, size_t size)
{
    char *target = to;
    const char *source = from;

    if (target <= source)
        __asm__ volatile("rep movsb" : "+D"(target), "+S"(source), "+c"(size) : : "memory");
    else
        while (size--)
            target[size] = source[size];
    return to;
}

void *memcpy(void *to, const void *from, size_t size)
{
    return memmove(to, from, size);
}

static void close_fd(int *fd)
{
    if (*fd >= 0)
        SYS(close, *fd, 0, 0, 0, 0);
    *fd = -1;
}

static void hang_up(struct connection *c)
{
    close_fd(&c->fd[SOCKET]);
    close_fd(&c->fd[INPUT]);
    close_fd(&c->fd[OUTPUT]);
    close_fd(&c->fd[ERRORS]);
    close_fd(&c->file);
    if (c->busy == PUT)
        SYS(unlink, c->temporary, 0, 0, 0, 0);
    if (c->pid)
        SYS(kill, -c->pid, SIGKILL, 0, 0, 0); /* it is waited for by its pidfd */
    c->busy = 0;
    c->in = c->out = c->off = 0;
}

static void send_out(struct connection *c)
{
    long sent = sys6(__NR_sendto, c->fd[SOCKET], (long)(c->out_data + c->off), c->out - c->off,
                     MSG_NOSIGNAL | MSG_DONTWAIT, 0, 0);

    if (sent < 0 && sent != -EAGAIN && sent != -EINTR)
        hang_up(c);
    else if (sent > 0 && (c->off += sent) == c->out)
        c->out = c->off = 0;
}

/* Sends a frame whose payload is in out_data already. Only while nothing waits to be sent. */
static void send_frame(struct connection *c, enum frame type, unsigned size)
{
    uint32_t header[2] = {size, type};

    memcpy(c->out_data, header, HEADER);
    c->out = HEADER + size;
    send_out(c);
}

static void send_number(struct connection *c, enum frame type, uint32_t number)
{
    memcpy(c->out_data + HEADER, &number, sizeof number);
    send_frame(c, type, sizeof number);
}

/* The outcome of a request that has no other answer: a system call's value. */
static void answer(struct connection *c, long result)
{
    if (result < 0)
        send_number(c, ERROR, -result);
    else
        send_frame(c, OK, 0);
}

/* Cuts the next string, with its NUL, out of what is left of a payload; NULL if there is none. */
static char *next_string(char **cursor, const char *end)
{
    char *text = *cursor;

    for (char *at = text; at < end; at++)
        if (!*at) {
            *cursor = at + 1;
            return text;
        }
    return NULL;
}

#endif
