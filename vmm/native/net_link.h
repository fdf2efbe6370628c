/* What a card is plugged into. vmm/host/{tap,lan,passt}.py is the reference. */
#pragma once

#include "net_rules.h"

#include <sys/types.h>

enum sent { SENT, LOST, FULL }; /* FULL: try again soon */

/* The next frame, header first, at most FRAME_MAX bytes: its size, or -1 with errno set, EAGAIN if none waits. */
ssize_t link_read(int fd, enum link_kind kind, uint8_t *frame);
/* The same into pieces; not from a stream. */
ssize_t link_readv(int fd, const struct iovec *iov, unsigned pieces);
/* Send a frame, whose header may be spoilt. */
enum sent link_write(int fd, enum link_kind kind, uint8_t *frame, size_t size);
/* The same from pieces; not to a stream. */
enum sent link_writev(int fd, enum link_kind kind, const struct iovec *iov, unsigned pieces);
