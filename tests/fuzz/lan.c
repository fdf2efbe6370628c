/* The switch of a lan, between ports that mean no good. Uses: lan.c lan_pcap.c lan_table.c ring.c worker.c */
#include "lan.h"

#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

enum { ADDRESSES = 4, TRUNKS = 4, OWN = 6, PORTS = 7, PREFIX = HEADER_SIZE + 12, MESSAGE = FRAME_MAX + TAG_SIZE, TURNS = 4 };

/* What an input is made of: a port does something, with the bytes that follow. */
struct command {
    uint8_t port, kind, addresses, size;
};

static const uint16_t vlans[PORTS] = {LAN_NATIVE, LAN_NATIVE, 5, 5, LAN_TRUNK, LAN_TRUNK, LAN_TRUNK};
static struct lan *lan;
static int outside[PORTS], recording;
static uint8_t message[MESSAGE];

static void check(bool condition)
{
    if (!condition)
        abort();
}

static void join(int port)
{
    int ends[2];

    check(!socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, ends));
    outside[port] = ends[0];
    if (port == OWN)
        check(!lan_serve(lan, ends[1]));
    else
        check(lan_join(lan, ends[1], port, vlans[port], port ? -1 : dup(recording)) == port);
}

/* A frame's last byte says in which VLAN it may be seen; 0: a trunk has sent it, which may choose. */
static uint8_t mark(int port)
{
    return port < TRUNKS ? (uint8_t)vlans[port] : 0;
}

/* Begin the message with a few addresses and tags, so that they meet; how long that is. */
static size_t begin(const struct command *command)
{
    static const uint8_t tags[][TAG_SIZE] = {{0x81, 0, 0, 0}, {0x81, 0, 0, 1}, {0x81, 0, 0, 5}, {0x81, 0, 0xef, 0xff}};
    uint8_t *at = message + PREFIX;

    memset(message, 0xff, PREFIX);
    if (command->addresses & 7)
        memcpy(message + HEADER_SIZE, (uint8_t[]){2, 0, 0, 0, 0, command->addresses & 7}, 6);
    memcpy(message + HEADER_SIZE + 6, (uint8_t[]){2, 0, 0, 0, 0, command->addresses >> 3 & 7}, 6);
    for (int bit = 32; bit <= 64; bit *= 2, at += TAG_SIZE)
        if (command->kind & bit)
            memcpy(at, tags[((command->addresses >> 6) + (bit >> 5 & 2)) % 4], TAG_SIZE);
        else
            break;
    return (size_t)(at - message);
}

static void send_frame(int port, const struct command *command, const uint8_t *data, size_t size)
{
    static const size_t sizes[] = {0, 1, 12, 25, 26, 29, 30, 60, 1526, FRAME_MAX, FRAME_MAX + 1};
    size_t length = sizes[command->size % (sizeof sizes / sizeof *sizes)], start;

    memset(message, 0, sizeof message);
    start = command->kind & 8 ? begin(command) : 0;
    memcpy(message + start, data, size);
    length = length ? length : start + size;
    if (length)
        message[length - 1] = mark(port);
    (void)!send(outside[port], message, length, MSG_NOSIGNAL);
}

static void receive_frames(int port)
{
    ssize_t size;

    while ((size = recv(outside[port], message, sizeof message, 0)) > 0) {
        const uint8_t *type = message + PREFIX, marked = message[size - 1];
        uint16_t vlan = vlans[port];

        check(size >= FRAME_MIN && size <= FRAME_MAX + TAG_SIZE);
        for (int i = 0; i < HEADER_SIZE; i++)
            check(!message[i]);
        check(!(message[HEADER_SIZE + 6] & 1));
        if (vlan == LAN_TRUNK)
            vlan = type[0] == 0x81 && !type[1] ? (uint16_t)((type[2] << 8 | type[3]) & 0xfff) : LAN_NATIVE;
        check(!marked || marked == vlan);
    }
}

static void check_table(void)
{
    unsigned counts[LAN_PORTS + 1] = {0};

    for (const struct place *place = lan->table.places; place < lan->table.places + TABLE; place++)
        if (place->key) {
            check(place->port->fd >= 0);
            counts[place->port - lan->ports]++;
        }
    for (int i = 0; i <= LAN_PORTS; i++)
        check(counts[i] == lan->ports[i].addresses && counts[i] <= ADDRESSES);
}

static void check_recording(void)
{
    uint32_t record[4];
    off_t at = 0;

    while (pread(recording, record, sizeof record, at) == sizeof record) {
        check(record[2] == record[3] && record[2] <= FRAME_MAX - HEADER_SIZE + TAG_SIZE);
        at += (off_t)(sizeof record + record[2]);
    }
    check(at == lseek(recording, 0, SEEK_END));
}

static void act(const struct command *command, const uint8_t *data, size_t size)
{
    const int port = command->port % PORTS;

    if ((command->kind & 7) == 7 && port != OWN) { /* leave, and come back */
        close(outside[port]);
        while (lan_has(lan, port))
            lan_turn(lan, 0);
        join(port);
    } else {
        send_frame(port, command, data, size);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct lan_limits limits = {.age_ns = UINT64_MAX, .addresses = ADDRESSES};
    const int nobody = eventfd(0, 0);
    struct command command;

    check((lan = lan_open(nobody, &limits)) && (recording = memfd_create("pcap", 0)) >= 0);
    for (int port = 0; port < PORTS; port++)
        join(port);
    while (size >= sizeof command) {
        size_t part;

        memcpy(&command, data, sizeof command);
        data += sizeof command;
        size -= sizeof command;
        part = command.size < size ? command.size : size;
        act(&command, data, part);
        data += part;
        size -= part;
        for (int turn = 0; turn < TURNS && command.kind & 16; turn++)
            lan_turn(lan, 0);
        for (int port = 0; port < PORTS; port++)
            receive_frames(port);
        check_table();
    }
    check_recording();
    lan_close(lan);
    for (int port = 0; port < PORTS; port++)
        close(outside[port]);
    close(recording);
    close(nobody);
    return 0;
}
