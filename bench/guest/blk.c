/* virtio-blk (VIRTIO 1.2 §5.2): requests of one size, so and so many at a time. */
#include "virtio.h"

enum { SECTOR = 512, REQUEST_READ = 0, REQUEST_WRITE = 1, REQUEST_FLUSH = 4, FEATURE_FLUSH = 9 };
enum { DEPTH_MAX = 64, PER_REQUEST = 3 }; /* header, data, status: the fourth third of the ring is the flush's */

static struct virtqueue queue;
static struct {
	u32 type, reserved;
	u64 sector;
} headers[DEPTH_MAX + 1];
static volatile u8 statuses[DEPTH_MAX + 1];
static _Alignas(4096) u8 data[32 << 20];

static struct {
	u32 size, depth, batch;
	bool random;
	u64 blocks, next, state;
} load;

static void prepare(u32 type, u32 size, u32 depth, bool random)
{
	u64 device = virtio_find(DEVICE_BLK, 0);
	virtio_begin(device, 1 << FEATURE_FLUSH);
	u64 sectors = mmio_read(device + REGISTER_CONFIG) | (u64)mmio_read(device + REGISTER_CONFIG + 4) << 32;
	virtio_queue(device, &queue, 0);
	virtio_go(device);
	load.size = size;
	load.depth = (u32)number("depth", depth);
	load.batch = (u32)number("batch", load.depth / 4);
	load.random = random;
	load.blocks = sectors * SECTOR / size;
	load.state = 0x9e3779b97f4a7c15;
	if (!load.depth || load.depth > DEPTH_MAX || (u64)load.depth * size > sizeof(data) || !load.blocks || !load.batch)
		fail("depth, batch or disk do not fit");
	for (u32 i = 0; i <= load.depth; i++) {
		struct descriptor *chain = queue.table + PER_REQUEST * i;
		bool flush = i == load.depth;
		headers[i].type = flush ? REQUEST_FLUSH : type;
		chain[0] = (struct descriptor){ (u64)&headers[i], sizeof(headers[i]), DESC_NEXT,
						(u16)(PER_REQUEST * i + (flush ? 2 : 1)) };
		chain[1] = (struct descriptor){ (u64)data + (u64)i * size, size,
						(u16)(DESC_NEXT | (type == REQUEST_READ ? DESC_WRITE : 0)),
						(u16)(PER_REQUEST * i + 2) };
		chain[2] = (struct descriptor){ (u64)&statuses[i], 1, DESC_WRITE, 0 };
	}
	for (u64 at = 0; at < (u64)load.depth * size; at += 8)
		*(u64 *)(data + at) = at * load.state;
}

static void submit(u32 i)
{
	u64 block = load.next++ % load.blocks;
	if (load.random) {
		load.state ^= load.state << 13, load.state ^= load.state >> 7, load.state ^= load.state << 17;
		block = load.state % load.blocks;
	}
	headers[i].sector = block * (load.size / SECTOR);
	statuses[i] = 0xff;
	queue_add(&queue, (u16)(PER_REQUEST * i));
}

/* The next request that is done; false if none is. */
static bool collect(u32 *i)
{
	u16 head;
	u32 written;
	if (!queue_take(&queue, &head, &written))
		return false;
	*i = head / PER_REQUEST;
	if (statuses[*i])
		fail("a request went wrong");
	return true;
}

/* Always *depth* requests under way, but for up to *batch* that are done and go back together. */
static void keep_going(void)
{
	struct section section;
	u64 done = 0;
	u32 idle[DEPTH_MAX], count = 0, i;
	for (; count < load.depth; count++)
		idle[count] = count;
	section_prepare(&section);
	while (section_goes_on(&section, &done)) {
		if (count >= load.batch) {
			while (count)
				submit(idle[--count]);
			queue_publish(&queue);
		}
		while (collect(&i)) {
			idle[count++] = i;
			done++;
		}
	}
	section_report(&section, "requests", done);
	stop();
}

void blk_random_read(void)
{
	prepare(REQUEST_READ, 4096, 32, true);
	keep_going();
}

void blk_sequential_read(void)
{
	prepare(REQUEST_READ, 1 << 20, 4, false);
	keep_going();
}

void blk_random_write(void)
{
	prepare(REQUEST_WRITE, 4096, 32, true);
	keep_going();
}

/* *depth* writes at once, then, when all of them are done, a flush; only the writes are counted. */
void blk_write_flush(void)
{
	struct section section;
	u64 done = 0;
	u32 i;
	prepare(REQUEST_WRITE, 4096, 32, true);
	section_prepare(&section);
	while (section_goes_on(&section, &done)) {
		for (i = 0; i < load.depth; i++)
			submit(i);
		queue_publish(&queue);
		for (u32 left = load.depth; left; left--)
			while (!collect(&i))
				;
		submit(load.depth);
		queue_publish(&queue);
		while (!collect(&i))
			;
		done += load.depth;
	}
	section_report(&section, "requests", done);
	stop();
}
