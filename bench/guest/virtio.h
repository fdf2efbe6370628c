/* A driver for modern virtio-mmio devices with split rings: polled, and as batched as its caller makes it. */
#pragma once

#include "guest.h"

enum { DESC_NEXT = 1, DESC_WRITE = 2, RING_MAX = 256 };
enum { DEVICE_NET = 1, DEVICE_BLK = 2 };
enum { FEATURE_EVENT_IDX = 29, FEATURE_VERSION_1 = 32 };
enum { REGISTER_CONFIG = 0x100 };

struct descriptor {
	u64 address;
	u32 size;
	u16 flags, next;
};

struct virtqueue {
	_Alignas(4096) struct descriptor table[RING_MAX];
	_Alignas(4096) struct {
		u16 flags, index, ring[RING_MAX], used_event;
	} available;
	_Alignas(4096) struct {
		u16 flags, index;
		struct {
			u32 id, size;
		} ring[RING_MAX];
		u16 available_event;
	} used;
	u64 notify;
	u16 number, added, kicked, seen;
};

/* The registers of the first device of this kind, or of the next one after *before*; fails if there is none. */
u64 virtio_find(u32 device, u64 before);

/*
 * Reset the device and offer it VERSION_1, EVENT_IDX and *wanted*, as far as it has them; what was taken.
 * The queues are set up between virtio_begin() and virtio_go().
 */
u64 virtio_begin(u64 device, u64 wanted);
void virtio_queue(u64 device, struct virtqueue *queue, u16 number);
void virtio_go(u64 device);

/* Make the chain at *head* the device's, once queue_publish() is called. */
static inline void queue_add(struct virtqueue *queue, u16 head)
{
	queue->available.ring[queue->added++ % RING_MAX] = head;
}

/* Let the device see what was added, and kick it if it asks for that. */
void queue_publish(struct virtqueue *queue);

/* Whether the device is done with a chain; if so, *head* is which, *size* what it wrote. */
static inline bool queue_take(struct virtqueue *queue, u16 *head, u32 *size)
{
	if (*(volatile u16 *)&queue->used.index == queue->seen)
		return false;
	__asm__ volatile("" : : : "memory");
	*head = (u16)queue->used.ring[queue->seen % RING_MAX].id;
	*size = queue->used.ring[queue->seen % RING_MAX].size;
	queue->seen++;
	return true;
}
