/* Files: PUT, GET, DATA, END. */
#ifndef FILES_H
#define FILES_H

#include "connection.h"

#include <sys/stat.h>

/* Payload: le32 mode, path. The file appears under its name when it is complete. */
static long start_put(struct connection *c, char *payload, unsigned size)
{
    char *cursor = payload + sizeof c->mode, *path;

    if (size < sizeof c->mode || !(path = next_string(&cursor, payload + size)))
        return -EINVAL;
    size_t count = length(path);
    if (count >= PATH_BYTES)
        return -ENAMETOOLONG;
    memcpy(&c->mode, payload, sizeof c->mode);
    memcpy(c->path, path, count + 1);
    memcpy(c->temporary, path, count);
    memcpy(c->temporary + count, TEMPORARY, sizeof TEMPORARY);
    c->temporary[count + sizeof TEMPORARY - 2] += c - connections;
    long fd = SYS(open, c->temporary, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600, 0, 0);
    if (fd < 0)
        return fd;
    c->file = fd;
    c->busy = PUT;
    return 0;
}

static long write_file(struct connection *c, const char *data, unsigned size)
{
    while (size) {
        long count = SYS(write, c->file, data, size, 0, 0);
        if (count < 0)
            return count;
        data += count;
        size -= count;
    }
    return 0;
}

static long finish_put(struct connection *c)
{
    long error = SYS(fchmod, c->file, c->mode & 07777, 0, 0, 0);

    close_fd(&c->file);
    if (error >= 0)
        error = SYS(rename, c->temporary, c->path, 0, 0, 0);
    if (error >= 0)
        c->busy = 0;
    return error;
}

static long start_get(struct connection *c, char *payload, unsigned size)
{
    char *path = next_string(&payload, payload + size);
    struct stat status;

    if (!path)
        return -EINVAL;
    long fd = SYS(open, path, O_RDONLY | O_NONBLOCK | O_CLOEXEC, 0, 0, 0);
    if (fd < 0)
        return fd;
    SYS(fstat, fd, &status, 0, 0, 0);
    c->mode = status.st_mode & 07777;
    c->file = fd;
    c->busy = GET;
    return 0;
}

static void send_file(struct connection *c)
{
    long count = SYS(read, c->file, c->out_data + HEADER, FRAME_MAX, 0, 0);

    if (count > 0) {
        send_frame(c, DATA, count);
        return;
    }
    close_fd(&c->file);
    c->busy = 0;
    send_number(c, count < 0 ? ERROR : END, count < 0 ? (unsigned)-count : c->mode);
}

#endif
