/* The switch of a lan: one thread that moves frames between sockets, each a port with a VM at its other end. It trusts no
 * port: a frame is bounded, its header wiped, and nothing that a port does costs the others more than their share. */
#include "lan.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

enum {
    DESTINATION = HEADER_SIZE, /* offsets in a message */
    SOURCE = HEADER_SIZE + 6,
    TAG = HEADER_SIZE + 12, /* IEEE 802.1Q */
    ETHERTYPE_VLAN = 0x8100,
    VLAN_MASK = 0xfff,
    SOCKET_BYTES = 1 << 20,
    EVENTS = 16,
};

/* A frame that has come in, whose header is wiped. */
struct frame {
    uint8_t *data;
    size_t size;
    uint16_t vlan;
    bool tagged;
};

static struct port *own_port(struct lan *lan)
{
    return lan->ports + LAN_PORTS;
}

static uint64_t address(const uint8_t *at)
{
    uint64_t number = 0;

    memcpy(&number, at, 6);
    return number;
}

/* ---- out ---- */

/* Send what waits. What a port has no room for is lost, as on any wire. */
static void send_out(struct lan *lan)
{
    struct port *port = lan->out_port;
    int sent;

    if (!lan->out_count)
        return;
    sent = sendmmsg(port->fd, lan->out, lan->out_count, MSG_DONTWAIT | MSG_NOSIGNAL);
    for (int i = 0; i < sent; i++)
        pcap_write(port, lan->out[i].msg_hdr.msg_iov, (unsigned)lan->out[i].msg_hdr.msg_iovlen);
    lan->out_count = 0;
}

/* Have the frame sent to the port, with or without a tag as that wants it. */
static void queue_frame(struct lan *lan, struct port *port, const struct frame *frame)
{
    struct msghdr *message;
    struct iovec *iov;
    const bool wants_tag = port->vlan == LAN_TRUNK && frame->vlan != LAN_NATIVE;

    if (lan->out_port != port || lan->out_count == BATCH) {
        send_out(lan);
        lan->out_port = port;
    }
    iov = lan->out_iov[lan->out_count];
    message = &lan->out[lan->out_count++].msg_hdr;
    message->msg_iov = iov;
    message->msg_iovlen = 1;
    iov[0] = (struct iovec){frame->data, frame->size};
    if (wants_tag == frame->tagged)
        return;
    iov[0].iov_len = TAG;
    if (wants_tag) {
        uint8_t *tag = lan->tags[lan->out_count - 1];

        tag[0] = ETHERTYPE_VLAN >> 8;
        tag[1] = ETHERTYPE_VLAN & 0xff;
        tag[2] = (uint8_t)(frame->vlan >> 8);
        tag[3] = (uint8_t)frame->vlan;
        iov[1] = (struct iovec){tag, TAG_SIZE};
        iov[2] = (struct iovec){frame->data + TAG, frame->size - TAG};
        message->msg_iovlen = 3;
    } else {
        iov[1] = (struct iovec){frame->data + TAG + TAG_SIZE, frame->size - TAG - TAG_SIZE};
        message->msg_iovlen = 2;
    }
}

static void flood(struct lan *lan, struct port *from, const struct frame *frame)
{
    if (bucket_delay_ns(&from->floods))
        return;
    bucket_take(&from->floods, 1);
    for (struct port *port = lan->ports; port <= own_port(lan); port++)
        if (port->fd >= 0 && port != from && (port->vlan == frame->vlan || port->vlan == LAN_TRUNK))
            queue_frame(lan, port, frame);
}

/* ---- in ---- */

static bool is_tag(const uint8_t *at)
{
    return (at[0] << 8 | at[1]) == ETHERTYPE_VLAN;
}

/* Whether the message of this port is a frame that may be sent on. */
static bool take_frame(const struct port *port, uint8_t *data, size_t size, struct frame *frame)
{
    const bool trunk = port->vlan == LAN_TRUNK;
    uint8_t *tag = data + TAG;
    uint16_t vlan;

    if (size < FRAME_MIN || size > FRAME_MAX || data[SOURCE] & 1)
        return false;
    memset(data, 0, HEADER_SIZE);
    *frame = (struct frame){data, size, trunk ? LAN_NATIVE : port->vlan, is_tag(tag)};
    if (frame->tagged) {
        if (size < FRAME_MIN + TAG_SIZE)
            return false;
        vlan = (uint16_t)(tag[2] << 8 | tag[3]) & VLAN_MASK;
        /* Only trunks choose. Without a VLAN a tag is but a priority; what it hides would be the tag once it is gone. */
        if (!trunk && (vlan || is_tag(tag + TAG_SIZE)))
            return false;
        if (vlan)
            frame->vlan = vlan;
        tag[2] = (uint8_t)((tag[2] & 0xf0) | frame->vlan >> 8);
        tag[3] = (uint8_t)frame->vlan;
    }
    return frame->vlan != VLAN_MASK; /* reserved */
}

static void forward(struct lan *lan, struct port *from, const struct frame *frame)
{
    const uint64_t above = (uint64_t)frame->vlan << 48;
    struct port *to = NULL;

    table_learn(&lan->table, above | address(frame->data + SOURCE), from, lan->now_ns);
    if (!(frame->data[DESTINATION] & 1))
        to = table_find(&lan->table, above | address(frame->data + DESTINATION), lan->now_ns);
    if (!to)
        flood(lan, from, frame);
    else if (to != from)
        queue_frame(lan, to, frame);
}

static void leave(struct lan *lan, struct port *port)
{
    table_forget(&lan->table, port);
    close(port->fd);
    if (port->pcap_fd >= 0)
        close(port->pcap_fd);
    port->fd = port->pcap_fd = -1;
    if (port != own_port(lan))
        lan->count--;
}

static void serve(struct lan *lan, struct port *port)
{
    const int got = recvmmsg(port->fd, lan->in, BATCH, MSG_DONTWAIT, NULL);
    bool left = got < 0 && errno != EAGAIN && errno != EINTR;

    for (int i = 0; i < got && !left; i++) {
        uint8_t *data = lan->in_iov[i].iov_base;
        const size_t size = lan->in[i].msg_len;
        struct frame frame;

        left = !size; /* the other end is closed */
        if (!left && take_frame(port, data, size, &frame)) {
            pcap_write(port, &(struct iovec){data, size}, 1);
            forward(lan, port, &frame);
        }
    }
    send_out(lan);
    if (left)
        leave(lan, port);
}

int lan_turn(struct lan *lan, int timeout_ms)
{
    struct epoll_event events[EVENTS];
    const int ready = epoll_wait(lan->epoll_fd, events, EVENTS, timeout_ms);
    bool knock = false;

    lan->now_ns = now_ns();
    for (int i = 0; i < ready; i++) {
        if (events[i].data.ptr)
            serve(lan, events[i].data.ptr);
        else
            knock = true;
    }
    if (knock)
        return LAN_KNOCK;
    return lan->count ? 0 : LAN_EMPTY;
}

int lan_run(struct lan *lan, int timeout_ms)
{
    int end;

    do
        end = lan_turn(lan, lan->count ? -1 : timeout_ms);
    while (!end);
    return end;
}

/* ---- made and taken apart ---- */

static int watch(struct lan *lan, int fd, struct port *port)
{
    return epoll_ctl(lan->epoll_fd, EPOLL_CTL_ADD, fd, &(struct epoll_event){EPOLLIN, {.ptr = port}}) ? errno : 0;
}

struct lan *lan_open(int listen_fd, const struct lan_limits *limits)
{
    struct lan *lan = calloc(1, sizeof *lan);
    int error;

    if (!lan)
        return NULL;
    lan->limits = *limits;
    lan->table.age_ns = limits->age_ns;
    lan->table.addresses = limits->addresses;
    for (struct port *port = lan->ports; port <= own_port(lan); port++)
        port->fd = port->pcap_fd = -1;
    lan->slots = malloc((size_t)BATCH * SLOT);
    lan->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    error = !lan->slots ? ENOMEM : lan->epoll_fd < 0 ? errno : watch(lan, listen_fd, NULL);
    if (error) {
        lan_close(lan);
        errno = error;
        return NULL;
    }
    for (unsigned i = 0; i < BATCH; i++) {
        lan->in_iov[i] = (struct iovec){lan->slots + (size_t)i * SLOT, FRAME_MAX + 1};
        lan->in[i].msg_hdr = (struct msghdr){.msg_iov = &lan->in_iov[i], .msg_iovlen = 1};
    }
    return lan;
}

void lan_close(struct lan *lan)
{
    for (struct port *port = lan->ports; port <= own_port(lan); port++)
        if (port->fd >= 0)
            leave(lan, port);
    if (lan->epoll_fd >= 0)
        close(lan->epoll_fd);
    free(lan->slots);
    free(lan);
}

/* The port is fd's from now on; 0 or an errno. */
static int open_port(struct lan *lan, struct port *port, int fd, uint16_t vlan, int pcap_fd)
{
    const int error = watch(lan, fd, port);

    if (error)
        return error;
    *port = (struct port){.fd = fd, .pcap_fd = pcap_fd, .vlan = vlan};
    bucket_init(&port->floods);
    bucket_set(&port->floods, lan->limits.floods, lan->limits.floods_burst);
    /* As much room as the host gives: it is what a burst has. */
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &(int){SOCKET_BYTES}, sizeof(int));
    return 0;
}

int lan_join(struct lan *lan, int fd, int number, uint16_t vlan, int pcap_fd)
{
    struct port *port = lan->ports;
    int error;

    if (number >= 0 && number < LAN_PORTS && !lan_has(lan, number))
        port += number;
    while (port < own_port(lan) && port->fd >= 0)
        port++;
    error = port == own_port(lan) ? ENOSPC : open_port(lan, port, fd, vlan, pcap_fd);
    if (error)
        return -error;
    lan->count++;
    return (int)(port - lan->ports);
}

int lan_serve(struct lan *lan, int fd)
{
    return open_port(lan, own_port(lan), fd, LAN_TRUNK, -1);
}

bool lan_has(const struct lan *lan, int number)
{
    return lan->ports[number].fd >= 0;
}
