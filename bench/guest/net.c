/* virtio-net (VIRTIO 1.2 §5.1): frames out of, or into, a full ring of buffers. */
#include "virtio.h"

enum { RX, TX };
enum { FEATURE_CSUM = 0, FEATURE_MAC = 5, FEATURE_HOST_TSO4 = 11, FEATURE_MRG_RXBUF = 15 };
enum { HEADER_NEEDS_CSUM = 1, HEADER_GSO_TCPV4 = 1 };
enum { HEADER_SIZE = 12, ETHERNET_SIZE = 14, IP_SIZE = 20, TCP_SIZE = 20, MSS = 1448 };
enum { FRAME_SIZE = 64, TSO_FRAME_SIZE = ETHERNET_SIZE + 65535, TSO_FRAMES = 64, BUFFER_SIZE = 2048 };

struct header {
	u8 flags, gso_type;
	u16 header_size, gso_size, checksum_start, checksum_offset, buffers;
};

static struct virtqueue queues[2];
static _Alignas(4096) u8 buffers[RING_MAX][BUFFER_SIZE];
static _Alignas(4096) u8 large[TSO_FRAMES][(HEADER_SIZE + TSO_FRAME_SIZE + 4095) & ~4095];

static void prepare(u64 wanted)
{
	u64 device = virtio_find(DEVICE_NET, 0);
	wanted |= 1 << FEATURE_MRG_RXBUF | 1 << FEATURE_MAC;
	if ((virtio_begin(device, wanted) & wanted) != wanted)
		fail("the device lacks a feature");
	virtio_queue(device, &queues[RX], RX);
	virtio_queue(device, &queues[TX], TX);
	virtio_go(device);
}

/* An Ethernet frame to nobody: the host's stack drops it first thing. */
static void write_ethernet(u8 *frame, u16 type)
{
	static const u8 addresses[12] = { 2, 0, 0, 0, 0, 0xee, 2, 0, 0, 0, 0, 0xdd };
	for (size_t i = 0; i < sizeof(addresses); i++)
		frame[i] = addresses[i];
	frame[12] = (u8)(type >> 8);
	frame[13] = (u8)type;
}

/* TCP over IPv4, as large as it gets, for the host to cut. */
static void write_tso(u8 *buffer)
{
	*(struct header *)buffer = (struct header){ HEADER_NEEDS_CSUM, HEADER_GSO_TCPV4, ETHERNET_SIZE + IP_SIZE + TCP_SIZE,
						    MSS, ETHERNET_SIZE + IP_SIZE, 16, 0 };
	u8 *frame = buffer + HEADER_SIZE, *ip = frame + ETHERNET_SIZE, *tcp = ip + IP_SIZE;
	write_ethernet(frame, 0x0800);
	static const u8 ip_header[IP_SIZE] = { 0x45, 0, 0xff, 0xff, 0, 1, 0x40, 0, 64, 6, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2 };
	for (size_t i = 0; i < IP_SIZE; i++)
		ip[i] = ip_header[i];
	tcp[12] = TCP_SIZE / 4 << 4;
	tcp[13] = 0x10; /* ACK */
}

/* Keep the transmit queue full of its first *count* descriptors, *batch* of them at a time. */
static void keep_full(u16 count, u16 batch)
{
	struct virtqueue *queue = &queues[TX];
	struct section section;
	u64 done = 0;
	u16 idle[RING_MAX], free = 0;
	u32 written;
	for (; free < count; free++)
		idle[free] = free;
	section_prepare(&section);
	while (section_goes_on(&section, &done)) {
		if (free >= batch) {
			while (free)
				queue_add(queue, idle[--free]);
			queue_publish(queue);
		}
		while (queue_take(queue, &idle[free], &written)) {
			free++;
			done++;
		}
	}
	section_report(&section, "frames", done);
	stop();
}

void net_send(void)
{
	prepare(0);
	for (u16 i = 0; i < RING_MAX; i++) {
		write_ethernet(buffers[i] + HEADER_SIZE, 0x88b5); /* for local experiments */
		queues[TX].table[i] = (struct descriptor){ (u64)buffers[i], HEADER_SIZE + FRAME_SIZE, 0, 0 };
	}
	keep_full(RING_MAX, (u16)number("batch", 64));
}

void net_send_tso(void)
{
	prepare(1 << FEATURE_CSUM | 1 << FEATURE_HOST_TSO4);
	for (u16 i = 0; i < TSO_FRAMES; i++) {
		write_tso(large[i]);
		queues[TX].table[i] = (struct descriptor){ (u64)large[i], HEADER_SIZE + TSO_FRAME_SIZE, 0, 0 };
	}
	keep_full(TSO_FRAMES, (u16)number("batch", 16));
}

/* Say "R" and wait for a key: meanwhile frames are put in the tap's queue. Then take so many as are sure to be there. */
void net_receive(void)
{
	struct section section = { 0 };
	u64 left = number("frames", 380000), done = 0;
	u16 batch = (u16)number("batch", 64), idle[RING_MAX], free = 0;
	u32 written;
	outb(COM1, 'R');
	wait_for_key();
	prepare(0);
	for (; free < RING_MAX; free++) {
		queues[RX].table[free] = (struct descriptor){ (u64)buffers[free], BUFFER_SIZE, DESC_WRITE, 0 };
		idle[free] = free;
	}
	outb(COM1, 'B');
	section.begun = rdtsc();
	while (done < left) {
		if (free >= batch) {
			while (free)
				queue_add(&queues[RX], idle[--free]);
			queue_publish(&queues[RX]);
		}
		while (queue_take(&queues[RX], &idle[free], &written)) {
			free++;
			done++;
		}
	}
	section_report(&section, "frames", done);
	stop();
}
