/* Exits that a device of the VMM handles, from ring 0; on two processors with the time of each. */
#include "virtio.h"

enum { SAMPLES_MAX = 1 << 20, BINS = 1 << 20, TRAMPOLINE = 0x8000 };
enum { APIC_BASE = 0x1b, X2APIC_ICR = 0x830, INIT = 0x4500, STARTUP = 0x4600 };
static const u64 BASE_X2APIC = 0xfee00d00, TO_SECOND = 1ull << 32;

extern const u8 trampoline[], trampoline_end[];
void second_main(void);
static void (*second_work)(void);

static struct {
	u32 ticks[SAMPLES_MAX], count;
	volatile u32 state;
} processors[2];
enum { ABSENT, READY, DONE };
static volatile u32 may_start;
static u32 bins[BINS];

static void count_exits(u64 mmio)
{
	u64 count = number("exits", 20000), left = count;
	outb(COM1, 'B');
	u64 begun = rdtsc();
	if (mmio)
		for (; left; left--)
			mmio_read(mmio);
	else
		for (; left; left--)
			inb(COM1_SCRATCH);
	struct section section = { .begun = begun };
	section_report(&section, "exits", count);
}

void exits_pio(void)
{
	count_exits(0);
}

void exits_mmio(void)
{
	count_exits(virtio_find(DEVICE_BLK, 0) + REGISTER_CONFIG);
}

/* Exit until *ticks* have passed, and note how long each took. */
static void note_exits(u32 which, u64 ticks)
{
	u64 before = rdtsc(), end = before + ticks;
	u32 *at = processors[which].ticks, *last = at + SAMPLES_MAX;
	while (before < end && at < last) {
		inb(COM1_SCRATCH);
		u64 now = rdtsc();
		*at++ = (u32)(now - before);
		before = now;
	}
	processors[which].count = (u32)(at - processors[which].ticks);
	processors[which].state = DONE;
}

void second_main(void)
{
	second_work();
	stop();
}

void start_second(void (*function)(void))
{
	second_work = function;
	for (u32 i = 0; i < (u32)(trampoline_end - trampoline); i++)
		((volatile u8 *)TRAMPOLINE)[i] = trampoline[i];
	/* As an x2APIC: on software KVM the memory-mapped one starts no processor. */
	wrmsr(APIC_BASE, BASE_X2APIC);
	wrmsr(X2APIC_ICR, TO_SECOND | INIT);
	for (u64 until = rdtsc() + 30000000; rdtsc() < until;)
		;
	wrmsr(X2APIC_ICR, TO_SECOND | STARTUP | TRAMPOLINE >> 12);
}

static void second_exits(void)
{
	processors[1].state = READY;
	while (!may_start)
		;
	note_exits(1, number("ticks", 4000000000));
}

/* In ring 3: put the samples in bins and find the percentile. A bin is 2^shift ticks; the last takes what is longer. */
static void report_percentiles(void)
{
	enum { SHIFT = 6 };
	u64 total = 0, longest = 0;
	for (u32 which = 0; which < 2; which++)
		for (u32 i = 0; i < processors[which].count; i++, total++) {
			u32 ticks = processors[which].ticks[i], bin = ticks >> SHIFT;
			bins[bin < BINS ? bin : BINS - 1]++;
			longest = ticks > longest ? ticks : longest;
		}
	u64 percent[] = { 50, 99 }, found[2], below = 0;
	for (u32 bin = 0, next = 0; next < 2; bin++) {
		below += bins[bin];
		while (next < 2 && below * 100 >= total * percent[next])
			found[next++] = (u64)(bin + 1) << SHIFT;
	}
	print("\ndone");
	print_number("exits", total);
	print_number("ticks", number("ticks", 4000000000));
	print_number("p50", found[0]);
	print_number("p99", found[1]);
	print_number("max", longest);
	print("\n");
	stop();
}

void exits_two(void)
{
	start_second(second_exits);
	while (processors[1].state != READY)
		;
	outb(COM1, 'B');
	may_start = 1;
	note_exits(0, number("ticks", 4000000000));
	while (processors[1].state != DONE)
		;
	outb(COM1, 'E');
	enter_ring3(report_percentiles);
}
