/*
 * Everything at once, for ever, and checked: a disk is written and read back, frames go from one card to the other on
 * the same network, memory is rewritten, and the second processor counts by the interrupts of its local timer. Every
 * second or so a line of what was done is printed, each number more than before; "failed: …" if anything was not as it
 * should have been.
 */
#include "virtio.h"

enum { SLOTS = 8, PER_REQUEST = 3, BLOCK = 4096, SECTOR = 512, REQUEST_READ = 0, REQUEST_WRITE = 1 };
enum { FEATURE_MAC = 5, FEATURE_MRG_RXBUF = 15, RX = 0, TX = 1 };
enum { HEADER_SIZE = 12, ETHERNET_SIZE = 14, FRAME_SIZE = 1024, BUFFER_SIZE = 2048, BUFFERS = 16, ETHERTYPE = 0x88b5 };
enum { WORDS = 512, PAGES = 512 };
static const u64 RESEND_TICKS = 400000000, REPORT_TICKS = 500000000;

/* What the word at *index* is in the so many-th content of *what*. */
static u64 expected(u64 what, u64 turn, u64 index)
{
	u64 value = (what << 48 ^ turn << 16 ^ index) + 0x9e3779b97f4a7c15;
	value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9;
	return value ^ value >> 27;
}

static void fill(u64 *words, u64 count, u64 what, u64 turn)
{
	for (u64 i = 0; i < count; i++)
		words[i] = expected(what, turn, i);
}

static bool holds(const u64 *words, u64 count, u64 what, u64 turn)
{
	for (u64 i = 0; i < count; i++)
		if (words[i] != expected(what, turn, i))
			return false;
	return true;
}

/* The disk: each slot writes a block of its own part of it, reads it back, and goes to the next. */

static struct virtqueue disk;
static struct {
	struct {
		u32 type, reserved;
		u64 sector;
	} header;
	volatile u8 status;
	u64 turn;
} slots[SLOTS];
static _Alignas(4096) u64 blocks[SLOTS][BLOCK / 8];
static u64 blocks_each, blocks_checked;

static void submit(u16 slot, u32 type)
{
	slots[slot].header.type = type;
	slots[slot].header.sector = (slot * blocks_each + slots[slot].turn % blocks_each) * (BLOCK / SECTOR);
	slots[slot].status = 0xff;
	disk.table[PER_REQUEST * slot + 1].flags = type == REQUEST_READ ? DESC_NEXT | DESC_WRITE : DESC_NEXT;
	fill(blocks[slot], BLOCK / 8, 100 + slot, type == REQUEST_WRITE ? slots[slot].turn : ~0ull);
	queue_add(&disk, (u16)(PER_REQUEST * slot));
}

static void disk_begin(void)
{
	u64 device = virtio_find(DEVICE_BLK, 0);
	virtio_begin(device, 0);
	blocks_each = mmio_read(device + REGISTER_CONFIG) / (BLOCK / SECTOR) / SLOTS;
	virtio_queue(device, &disk, 0);
	virtio_go(device);
	for (u16 slot = 0; slot < SLOTS; slot++) {
		struct descriptor *chain = disk.table + PER_REQUEST * slot;
		u16 first = (u16)(PER_REQUEST * slot);
		chain[0] = (struct descriptor){ (u64)&slots[slot].header, 16, DESC_NEXT, (u16)(first + 1) };
		chain[1] = (struct descriptor){ (u64)blocks[slot], BLOCK, DESC_NEXT, (u16)(first + 2) };
		chain[2] = (struct descriptor){ (u64)&slots[slot].status, 1, DESC_WRITE, 0 };
		submit(slot, REQUEST_WRITE);
	}
}

static void disk_turn(void)
{
	u16 head;
	u32 written;
	while (queue_take(&disk, &head, &written)) {
		u16 slot = head / PER_REQUEST;
		if (slots[slot].status)
			fail("a request went wrong");
		if (slots[slot].header.type == REQUEST_WRITE) {
			submit(slot, REQUEST_READ);
			continue;
		}
		if (!holds(blocks[slot], BLOCK / 8, 100 + slot, slots[slot].turn))
			fail("the disk has something else");
		blocks_checked++;
		slots[slot].turn++;
		submit(slot, REQUEST_WRITE);
	}
	queue_publish(&disk);
}

/* The network: one frame after the other from the first card to the second, again if it does not come. */

static struct virtqueue sender[2], receiver[2];
static _Alignas(4096) u8 buffers[BUFFERS][BUFFER_SIZE], frame[BUFFER_SIZE];
static u64 frames_checked, sent_at;
static bool idle = true;

static u64 card_begin(u64 before, struct virtqueue queues[2])
{
	u64 device = virtio_find(DEVICE_NET, before);
	virtio_begin(device, 1 << FEATURE_MRG_RXBUF | 1 << FEATURE_MAC);
	virtio_queue(device, &queues[RX], RX);
	virtio_queue(device, &queues[TX], TX);
	virtio_go(device);
	return device;
}

static void network_begin(void)
{
	card_begin(card_begin(0, sender), receiver);
	for (u16 i = 0; i < BUFFERS; i++) {
		receiver[RX].table[i] = (struct descriptor){ (u64)buffers[i], BUFFER_SIZE, DESC_WRITE, 0 };
		queue_add(&receiver[RX], i);
	}
	queue_publish(&receiver[RX]);
	sender[TX].table[0] = (struct descriptor){ (u64)frame, HEADER_SIZE + ETHERNET_SIZE + FRAME_SIZE, 0, 0 };
	for (u8 *at = frame + HEADER_SIZE; at < frame + HEADER_SIZE + 6; at++)
		*at = 0xff;
	frame[HEADER_SIZE + 6] = 2; /* a local address, from nobody */
	frame[HEADER_SIZE + 12] = ETHERTYPE >> 8;
	frame[HEADER_SIZE + 13] = ETHERTYPE & 0xff;
}

static void send(void)
{
	fill((u64 *)(frame + HEADER_SIZE + ETHERNET_SIZE), FRAME_SIZE / 8, 200, frames_checked);
	queue_add(&sender[TX], 0);
	queue_publish(&sender[TX]);
	idle = false;
	sent_at = rdtsc();
}

static void network_turn(void)
{
	u16 head;
	u32 written;
	bool came = false;
	while (queue_take(&sender[TX], &head, &written))
		idle = true;
	while (queue_take(&receiver[RX], &head, &written)) {
		const u8 *got = buffers[head] + HEADER_SIZE;
		const u64 *content = (const u64 *)(got + ETHERNET_SIZE);
		if (got[12] == ETHERTYPE >> 8 && got[13] == (ETHERTYPE & 0xff) && content[0] == expected(200, frames_checked, 0)) {
			if (!holds(content, FRAME_SIZE / 8, 200, frames_checked))
				fail("a frame has changed on its way");
			frames_checked++;
			came = true;
		}
		queue_add(&receiver[RX], head);
	}
	queue_publish(&receiver[RX]);
	if (idle && (came || rdtsc() - sent_at > RESEND_TICKS))
		send();
}

/* Memory: one page after the other is checked and rewritten. */

static _Alignas(4096) u64 pages[PAGES][WORDS];
static u64 pages_checked;

static void memory_turn(void)
{
	u64 page = pages_checked % PAGES, turn = pages_checked / PAGES;
	if (turn && !holds(pages[page], WORDS, page, turn - 1))
		fail("the memory has something else");
	fill(pages[page], WORDS, page, turn);
	pages_checked++;
}

/* The second processor: so many steps of a linear congruence each time its timer's interrupt wakes it. */

enum { APIC_BASE = 0x1b, X2APIC = 0xfee00c00 };
enum { SPURIOUS = 0x80f, TIMER = 0x832, TIMER_COUNT = 0x838, TIMER_DIVIDE = 0x83e };
enum { PERIODIC = 1 << 17, VECTOR = 0x40, BY_ONE = 0xb, PERIOD_NS = 5000000, STEPS = 16 };
static const u64 FACTOR = 6364136223846793005, TERM = 1442695040888963407;

extern const u8 on_timer[];
volatile u64 timer_ticks;
static volatile u64 version, steps, value;

__asm__("on_timer:\n"
	"	incq timer_ticks\n"
	"	push %rax\n"
	"	push %rcx\n"
	"	push %rdx\n"
	"	mov $0x80b, %ecx\n" /* end of interrupt */
	"	xor %eax, %eax\n"
	"	xor %edx, %edx\n"
	"	wrmsr\n"
	"	pop %rdx\n"
	"	pop %rcx\n"
	"	pop %rax\n"
	"	iretq\n");

static void count_by_timer(void)
{
	static struct {
		u16 low, selector, flags, middle;
		u32 high, reserved;
	} gates[VECTOR + 1];
	static struct __attribute__((packed)) {
		u16 limit;
		u64 base;
	} table = { sizeof(gates) - 1, 0 };
	u64 handler = (u64)on_timer;
	gates[VECTOR].low = (u16)handler, gates[VECTOR].middle = (u16)(handler >> 16);
	gates[VECTOR].selector = 8, gates[VECTOR].flags = 0x8e00;
	table.base = (u64)gates;
	__asm__ volatile("lidt %0" : : "m"(table));
	wrmsr(APIC_BASE, X2APIC);
	wrmsr(SPURIOUS, 0x1ff);
	wrmsr(TIMER_DIVIDE, BY_ONE);
	wrmsr(TIMER, PERIODIC | VECTOR);
	wrmsr(TIMER_COUNT, PERIOD_NS);
	for (;;) {
		__asm__ volatile("sti\n\thlt\n\tcli" : : : "memory");
		version++;
		for (u64 i = 0; i < STEPS; i++)
			value = value * FACTOR + TERM;
		steps += STEPS;
		version++;
	}
}

/* What comes of 0 by so many steps. */
static u64 after(u64 count)
{
	u64 factor = 1, term = 0, by_factor = FACTOR, by_term = TERM;
	for (; count; count >>= 1) {
		if (count & 1) {
			factor *= by_factor;
			term = term * by_factor + by_term;
		}
		by_term *= by_factor + 1;
		by_factor *= by_factor;
	}
	return term;
}

static u64 counted(void)
{
	for (;;) {
		u64 before = version, count = steps, came_to = value;
		if (!(before & 1) && before == version) {
			if (after(count) != came_to)
				fail("the second processor has miscounted");
			return count;
		}
	}
}

static void work(void)
{
	disk_begin();
	network_begin();
	send();
	for (u64 reported = rdtsc();;) {
		disk_turn();
		network_turn();
		memory_turn();
		if (rdtsc() - reported < REPORT_TICKS)
			continue;
		reported = rdtsc();
		print("did");
		print_number("blocks", blocks_checked);
		print_number("frames", frames_checked);
		print_number("pages", pages_checked);
		print_number("steps", counted());
		print_number("ticks", timer_ticks);
		print("\n");
	}
}

void load_everything(void)
{
	start_second(count_by_timer);
	enter_ring3(work);
}
