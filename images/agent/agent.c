/*
 * pyvmm's agent: runs commands and moves files for the host, over virtio-vsock.
 *
 * One process and one poll loop: on a host that interprets ring 0 a fork costs 40 ms and each system call a quarter of
 * one, so a connection forks nothing but its command, by vfork, and a sync, and what need not be asked is not asked. All
 * memory is static: CONNECTIONS slots, of which only what is used is ever touched.
 *
 * Only the host may connect: other programs of the guest are turned away by their CID.
 */
#define _GNU_SOURCE
#include "command.h"
#include "files.h"

#include <linux/random.h>
#include <linux/vm_sockets.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <time.h>

#define SEED_MAX 512

static int urandom; /* /dev/urandom */
static unsigned slots; /* of connections, ever used */
static struct pollfd set[1 + CONNECTIONS * FILES];

/* --- requests that are done at once --------------------------------------------------------------------------------- */

static long set_time(const char *payload, unsigned size)
{
    uint64_t ns;

    if (size != sizeof ns)
        return -EINVAL;
    memcpy(&ns, payload, sizeof ns);
    struct timespec time = {ns / 1000000000, ns % 1000000000};
    return SYS(clock_settime, CLOCK_REALTIME, &time, 0, 0, 0);
}

/* Mixes the payload into the kernel's random numbers, counted as true ones, and makes it use them now. */
static long reseed(const char *payload, unsigned size)
{
    static struct {
        struct rand_pool_info info;
        char seed[SEED_MAX];
    } pool;

    if (!size || size > SEED_MAX)
        return -EINVAL;
    pool.info.entropy_count = 8 * size;
    pool.info.buf_size = size;
    memcpy(pool.info.buf, payload, size);
    long error = SYS(ioctl, urandom, RNDADDENTROPY, &pool, 0, 0);
    if (error >= 0)
        error = SYS(ioctl, urandom, RNDRESEEDCRNG, 0, 0, 0);
    memset(&pool, 0, sizeof pool);
    return error;
}

/* Payload: as of TIME, as of RESEED. */
static long renew(const char *payload, unsigned size)
{
    if (size < sizeof(uint64_t))
        return -EINVAL;
    long error = set_time(payload, sizeof(uint64_t));
    return error < 0 ? error : reseed(payload + sizeof(uint64_t), size - sizeof(uint64_t));
}

static void hello(struct connection *c, const char *nonce, unsigned size)
{
    uint32_t version = AGENT_VERSION;

    memcpy(c->out_data + HEADER, &version, sizeof version);
    if (size > FRAME_MAX - sizeof version)
        size = FRAME_MAX - sizeof version;
    memcpy(c->out_data + HEADER + sizeof version, nonce, size);
    send_frame(c, OK, sizeof version + size);
}

/* --- frames in -------------------------------------------------------------------------------------------------- */

/* Does what a frame asks for; 0 if it has to wait. A frame that does not belong here ends the connection. */
static int obey(struct connection *c, enum frame type, char *payload, unsigned size)
{
    uint32_t number;
    long result;

    switch (c->busy) {
    case GET:
    case SYNC:
        return 0;
    case EXEC:
        if (type == STDIN)
            return feed(c, payload, size);
        if (type != SIGNAL || size != sizeof number)
            break;
        memcpy(&number, payload, sizeof number);
        SYS(kill, -c->pid, number, 0, 0, 0);
        return 1;
    case PUT:
        if (type != DATA && type != END)
            break;
        result = type == DATA ? write_file(c, payload, size) : finish_put(c);
        if (result < 0 || type == END)
            answer(c, result);
        if (result < 0)
            hang_up(c); /* what follows of the file is not read */
        return 1;
    default:
        switch (type) {
        case HELLO:
            hello(c, payload, size);
            return 1;
        case EXEC:
            if ((result = start_command(c, payload, size)))
                answer(c, result);
            return 1;
        case PUT:
            answer(c, start_put(c, payload, size));
            return 1;
        case GET:
            if ((result = start_get(c, payload, size)))
                answer(c, result);
            return 1;
        case TIME:
            answer(c, set_time(payload, size));
            return 1;
        case RESEED:
            answer(c, reseed(payload, size));
            return 1;
        case RENEW:
            answer(c, renew(payload, size));
            return 1;
        case SYNC:
            if ((result = start_sync(c)))
                answer(c, result);
            return 1;
        case STDIN: /* the command ended before it had read them */
        case SIGNAL:
            return 1;
        default:
            break;
        }
    }
    hang_up(c);
    return 1;
}

/* Whether the first frame is all there; its size and type. */
static int first_frame(const struct connection *c, uint32_t *header)
{
    if (c->in < HEADER)
        return 0;
    memcpy(header, c->in_data, HEADER);
    return header[0] > FRAME_MAX || c->in >= HEADER + header[0];
}

/* Obeys the frames that are there, while their answers can be sent. */
static void work_off(struct connection *c)
{
    uint32_t header[2];

    while (c->fd[SOCKET] >= 0 && !c->out && first_frame(c, header)) {
        if (header[0] > FRAME_MAX) {
            hang_up(c);
            return;
        }
        if (!obey(c, header[1], c->in_data + HEADER, header[0]))
            return;
        if (!c->in) /* hung up */
            return;
        c->in -= HEADER + header[0];
        c->done = 0;
        memmove(c->in_data, c->in_data + HEADER + header[0], c->in);
    }
}

static long read_socket(struct connection *c, char *data, size_t size, int flags)
{
    return sys6(__NR_recvfrom, c->fd[SOCKET], (long)data, size, MSG_DONTWAIT | flags, 0, 0);
}

/*
 * Reads, and does what that asks for. A request is obeyed before it is taken from the socket: Linux tells the host of each
 * read that leaves nothing, by a packet of its own, and two switches of processes that the answer would have to wait for.
 */
static void receive(struct connection *c)
{
    static char taken[sizeof c->in_data];
    int peek = c->busy ? 0 : MSG_PEEK;
    long count = read_socket(c, c->in_data + c->in, sizeof c->in_data - c->in, peek);

    if (count == -EAGAIN || count == -EINTR)
        return;
    if (count <= 0) {
        hang_up(c);
        return;
    }
    c->in += count;
    work_off(c);
    if (peek && c->fd[SOCKET] >= 0 && read_socket(c, taken, count, 0) != count)
        hang_up(c);
}

/* --- the loop --------------------------------------------------------------------------------------------------- */

static int is_free(const struct connection *c)
{
    return c->fd[SOCKET] < 0 && !c->pid;
}

static struct connection *free_slot(void)
{
    for (unsigned slot = 0; slot < slots; slot++)
        if (is_free(&connections[slot]))
            return &connections[slot];
    if (slots == CONNECTIONS)
        return NULL;
    struct connection *c = &connections[slots++];
    for (int file = 0; file < FILES; file++)
        c->fd[file] = -1;
    c->file = -1;
    return c;
}

static void accept_one(int listener, struct connection *c)
{
    struct sockaddr_vm peer;
    int size = sizeof peer;
    int fd = SYS(accept4, listener, &peer, &size, SOCK_CLOEXEC, 0);

    if (fd < 0)
        return;
    if (peer.svm_cid != VMADDR_CID_HOST) {
        SYS(close, fd, 0, 0, 0, 0);
        return;
    }
    c->fd[SOCKET] = fd;
    c->in = c->done = c->out = c->off = 0;
    receive(c); /* most have sent their request by now */
}

/* What of a connection to wait for. */
static void prepare(struct connection *c, struct pollfd *entries)
{
    uint32_t header[2];
    int blocked = first_frame(c, header), idle = !c->out;

    for (int file = 0; file < FILES; file++)
        entries[file] = (struct pollfd){.fd = -1};
    if (c->fd[SOCKET] >= 0) {
        entries[SOCKET].fd = c->fd[SOCKET];
        entries[SOCKET].events = (blocked ? 0 : POLLIN) | (c->out || c->busy == GET ? POLLOUT : 0) |
                                 (c->busy == EXEC ? POLLRDHUP : 0);
    }
    if (blocked && idle && c->busy == EXEC && c->fd[INPUT] >= 0)
        entries[INPUT] = (struct pollfd){.fd = c->fd[INPUT], .events = POLLOUT};
    if (c->pid && idle)
        entries[PROCESS] = (struct pollfd){.fd = c->fd[PROCESS], .events = POLLIN};
    for (int file = OUTPUT; file <= ERRORS; file++)
        if (idle)
            entries[file] = (struct pollfd){.fd = c->fd[file], .events = POLLIN};
}

static void serve(struct connection *c, const struct pollfd *entries)
{
    short socket = entries[SOCKET].revents;

    if ((socket & (POLLERR | POLLHUP | POLLNVAL)) && !(socket & POLLIN))
        hang_up(c);
    else if ((socket & POLLRDHUP) && c->busy == EXEC)
        hang_up(c);
    if (c->fd[SOCKET] >= 0 && c->out && (socket & POLLOUT))
        send_out(c);
    if (entries[PROCESS].revents && !c->ended)
        note_end(c);
    if (c->fd[OUTPUT] >= 0 && !c->out && entries[OUTPUT].revents)
        forward(c, OUTPUT, STDOUT);
    if (c->fd[ERRORS] >= 0 && !c->out && entries[ERRORS].revents)
        forward(c, ERRORS, STDERR);
    if (c->pid && c->ended && !c->out && c->fd[OUTPUT] < 0 && c->fd[ERRORS] < 0)
        finish_process(c);
    if (c->fd[SOCKET] >= 0 && c->busy == GET && !c->out)
        send_file(c);
    if (c->fd[SOCKET] >= 0 && (socket & POLLIN))
        receive(c);
    else
        work_off(c);
}

static int listen_for_host(void)
{
    struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = AGENT_PORT};
    long fd = SYS(socket, AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0, 0, 0);

    if (fd < 0 || SYS(bind, fd, &address, sizeof address, 0, 0) < 0 || SYS(listen, fd, CONNECTIONS, 0, 0, 0) < 0)
        return -1;
    return fd;
}

__attribute__((force_align_arg_pointer, noreturn)) void _start(void)
{
    int listener = listen_for_host();

    if (listener < 0)
        SYS(exit, 1, 0, 0, 0, 0);
    handle_broken_pipes(SIG_IGN);
    nothing = SYS(open, "/dev/null", O_RDONLY | O_CLOEXEC, 0, 0, 0);
    urandom = SYS(open, "/dev/urandom", O_WRONLY | O_CLOEXEC, 0, 0, 0);
    for (;;) {
        struct connection *fresh = free_slot();
        set[0] = (struct pollfd){.fd = fresh ? listener : -1, .events = POLLIN};
        for (unsigned slot = 0; slot < slots; slot++)
            prepare(&connections[slot], set + 1 + slot * FILES);
        if (SYS(poll, set, 1 + slots * FILES, -1, 0, 0) < 0)
            continue;
        for (unsigned slot = 0; slot < slots; slot++)
            if (!is_free(&connections[slot]))
                serve(&connections[slot], set + 1 + slot * FILES);
        if (fresh && is_free(fresh) && set[0].revents)
            accept_one(listener, fresh);
    }
}
