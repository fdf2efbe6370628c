#include "lan.h"

#include <time.h>
#include <unistd.h>

/* A record of pcap-savefile(5), with nanoseconds. */
struct record {
    uint32_t seconds, nanoseconds, captured, length;
};

void pcap_write(struct port *port, const struct iovec *iov, unsigned pieces)
{
    struct iovec all[1 + PIECES_OF_FRAME];
    struct timespec now;
    struct record record;
    size_t size = 0;

    if (port->pcap_fd < 0)
        return;
    all[0] = (struct iovec){&record, sizeof record};
    for (unsigned i = 0; i < pieces; i++) {
        const size_t skip = i ? 0 : HEADER_SIZE;
        all[1 + i] = (struct iovec){(uint8_t *)iov[i].iov_base + skip, iov[i].iov_len - skip};
        size += all[1 + i].iov_len;
    }
    clock_gettime(CLOCK_REALTIME, &now);
    record = (struct record){(uint32_t)now.tv_sec, (uint32_t)now.tv_nsec, (uint32_t)size, (uint32_t)size};
    if (writev(port->pcap_fd, all, (int)(1 + pieces)) != (ssize_t)(sizeof record + size)) { /* the disk is full */
        close(port->pcap_fd);
        port->pcap_fd = -1;
    }
}
