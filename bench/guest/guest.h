/*
 * The I/O guest: a PVH program that drives virtio-blk and virtio-net itself and times what it does.
 *
 * Where ring 0 is interpreted (software KVM) only ring 3 runs at the processor's speed, so all the work is done there,
 * with the ports open, interrupts off and polled rings; just the exits are timed from ring 0, where one is cheapest.
 *
 * Its orders are on the command line: work=NAME, and numbers (decimal or 0x…) named in main.c. It answers on COM1: "B"
 * when the clock starts and "E" when it stops, then a line of name=value, or a line "failed: …".
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

enum { COM1 = 0x3f8, COM1_STATUS = 0x3fd, COM1_SCRATCH = 0x3ff };

/* main.c: orders and answers */
u64 number(const char *name, u64 otherwise);
void wait_for_key(void);
void print(const char *text);
void print_number(const char *name, u64 value);
_Noreturn void stop(void);
_Noreturn void fail(const char *why);
_Noreturn void enter_ring3(void (*function)(void));
/* exits.c: let the second processor do this, in ring 0; from ring 0 */
void start_second(void (*function)(void));

/* A timed section in three steps: warm up until *warm*, then start() is called once, then work until *end*. */
struct section {
	u64 warm_until, begun, ends;
};
void section_prepare(struct section *section);
/* Whether to go on; *counter is set to 0 when the clock starts. */
bool section_goes_on(struct section *section, u64 *counter);
/* Stop the clock and answer. */
void section_report(const struct section *section, const char *unit, u64 counter);

/* blk.c, net.c, exits.c, beat.c, load.c: what there is to do */
void blk_random_read(void);
void blk_sequential_read(void);
void blk_random_write(void);
void blk_write_flush(void);
void net_send(void);
void net_send_tso(void);
void net_receive(void);
void exits_pio(void);
void exits_mmio(void);
void exits_two(void);
void beat(void);
void stamp(void);
void load_everything(void);

static inline u64 rdtsc(void)
{
	u32 low, high;
	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
	return (u64)high << 32 | low;
}

static inline void outb(u16 port, u8 value)
{
	__asm__ volatile("outb %0, %1" : : "a"(value), "d"(port));
}

static inline u8 inb(u16 port)
{
	u8 value;
	__asm__ volatile("inb %1, %0" : "=a"(value) : "d"(port));
	return value;
}

static inline void wrmsr(u32 number, u64 value)
{
	__asm__ volatile("wrmsr" : : "c"(number), "a"((u32)value), "d"((u32)(value >> 32)));
}

/* Volatile through one plain MOV each: the emulators of KVM know no more for MMIO. */
static inline u32 mmio_read(u64 address)
{
	u32 value;
	__asm__ volatile("movl (%1), %0" : "=r"(value) : "r"(address) : "memory");
	return value;
}

static inline void mmio_write(u64 address, u32 value)
{
	__asm__ volatile("movl %0, (%1)" : : "r"(value), "r"(address) : "memory");
}
