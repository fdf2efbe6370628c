/* VIRTIO 1.2 §3.1.1 (initialization), §4.2 (MMIO), §2.7 (split virtqueues). */
#include "virtio.h"

enum {
	REGISTER_MAGIC = 0x00,
	REGISTER_VERSION = 0x04,
	REGISTER_DEVICE_ID = 0x08,
	REGISTER_DEVICE_FEATURES = 0x10,
	REGISTER_DEVICE_FEATURES_SELECT = 0x14,
	REGISTER_DRIVER_FEATURES = 0x20,
	REGISTER_DRIVER_FEATURES_SELECT = 0x24,
	REGISTER_QUEUE_SELECT = 0x30,
	REGISTER_QUEUE_SIZE_MAX = 0x34,
	REGISTER_QUEUE_SIZE = 0x38,
	REGISTER_QUEUE_READY = 0x44,
	REGISTER_QUEUE_NOTIFY = 0x50,
	REGISTER_STATUS = 0x70,
	REGISTER_QUEUE_TABLE = 0x80,
	REGISTER_QUEUE_AVAILABLE = 0x90,
	REGISTER_QUEUE_USED = 0xa0,
};
enum { MAGIC = 0x74726976, MODERN = 2, SLOTS = 24 };
enum { STATUS_ACKNOWLEDGE = 1, STATUS_DRIVER = 2, STATUS_DRIVER_OK = 4, STATUS_FEATURES_OK = 8 };
enum { NO_INTERRUPT = 1, NO_NOTIFY = 1 };

static bool event_index;

u64 virtio_find(u32 device, u64 before)
{
	u64 base = number("mmio", 0), stride = number("stride", 0x1000);
	for (u64 slot = before ? before + stride : base; slot < base + SLOTS * stride; slot += stride)
		if (mmio_read(slot + REGISTER_MAGIC) == MAGIC && mmio_read(slot + REGISTER_DEVICE_ID) == device) {
			if (mmio_read(slot + REGISTER_VERSION) != MODERN)
				fail("the device is a legacy one");
			return slot;
		}
	fail("there is no such device");
}

u64 virtio_begin(u64 device, u64 wanted)
{
	u32 status = STATUS_ACKNOWLEDGE | STATUS_DRIVER;
	mmio_write(device + REGISTER_STATUS, 0);
	mmio_write(device + REGISTER_STATUS, status);
	u64 taken = 0;
	for (u32 half = 0; half < 2; half++) {
		mmio_write(device + REGISTER_DEVICE_FEATURES_SELECT, half);
		taken |= (u64)mmio_read(device + REGISTER_DEVICE_FEATURES) << 32 * half;
	}
	taken &= wanted | 1ull << FEATURE_VERSION_1 | number("event", 1) << FEATURE_EVENT_IDX;
	event_index = taken >> FEATURE_EVENT_IDX & 1;
	for (u32 half = 0; half < 2; half++) {
		mmio_write(device + REGISTER_DRIVER_FEATURES_SELECT, half);
		mmio_write(device + REGISTER_DRIVER_FEATURES, (u32)(taken >> 32 * half));
	}
	mmio_write(device + REGISTER_STATUS, status | STATUS_FEATURES_OK);
	if (!(mmio_read(device + REGISTER_STATUS) & STATUS_FEATURES_OK))
		fail("the device refuses the features");
	return taken;
}

static void write_address(u64 where, const volatile void *address)
{
	mmio_write(where, (u32)(u64)address);
	mmio_write(where + 4, 0);
}

void virtio_queue(u64 device, struct virtqueue *queue, u16 index)
{
	mmio_write(device + REGISTER_QUEUE_SELECT, index);
	if (mmio_read(device + REGISTER_QUEUE_SIZE_MAX) < RING_MAX)
		fail("the device's queue is too short");
	mmio_write(device + REGISTER_QUEUE_SIZE, RING_MAX);
	write_address(device + REGISTER_QUEUE_TABLE, queue->table);
	write_address(device + REGISTER_QUEUE_AVAILABLE, &queue->available);
	write_address(device + REGISTER_QUEUE_USED, &queue->used);
	/* No interrupt is wanted: by the flag, or by an event that stays half a turn of the index away. */
	queue->available.flags = event_index ? 0 : NO_INTERRUPT;
	queue->available.used_event = 0x8000;
	mmio_write(device + REGISTER_QUEUE_READY, 1);
	queue->notify = device + REGISTER_QUEUE_NOTIFY;
	queue->number = index;
}

void virtio_go(u64 device)
{
	mmio_write(device + REGISTER_STATUS,
		   STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK | STATUS_DRIVER_OK);
}

void queue_publish(struct virtqueue *queue)
{
	u16 before = queue->kicked, now = queue->added;
	if (before == now)
		return;
	__asm__ volatile("" : : : "memory");
	*(volatile u16 *)&queue->available.index = now;
	*(volatile u16 *)&queue->available.used_event = (u16)(queue->seen + 0x8000);
	__asm__ volatile("mfence" : : : "memory");
	queue->kicked = now;
	bool wanted = !(*(volatile u16 *)&queue->used.flags & NO_NOTIFY);
	if (event_index) {
		u16 event = *(volatile u16 *)&queue->used.available_event;
		wanted = (u16)(now - event - 1) < (u16)(now - before);
	}
	if (wanted)
		mmio_write(queue->notify, queue->number);
}
