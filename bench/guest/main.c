/* Orders from the command line, answers on COM1, and the timed section that most works share. */
#include "guest.h"

extern u32 start_info;

static const char *command_line(void)
{
	return (const char *)(u64) * (u64 *)(u64)(start_info + 24); /* hvm_start_info.cmdline_paddr */
}

/* What follows "name=" in the command line; NULL if there is no such word. */
static const char *word(const char *name)
{
	const char *at = command_line();
	while (*at) {
		const char *wanted = name;
		while (*wanted && *at == *wanted)
			at++, wanted++;
		if (!*wanted && *at == '=')
			return at + 1;
		while (*at && *at != ' ')
			at++;
		while (*at == ' ')
			at++;
	}
	return NULL;
}

static bool is(const char *text, const char *name)
{
	while (*name && *text == *name)
		text++, name++;
	return !*name && (!*text || *text == ' ');
}

u64 number(const char *name, u64 otherwise)
{
	const char *at = word(name);
	if (!at)
		return otherwise;
	u64 base = 10, value = 0;
	if (at[0] == '0' && at[1] == 'x')
		base = 16, at += 2;
	for (; *at && *at != ' '; at++)
		value = value * base + (u64)(*at <= '9' ? *at - '0' : *at - 'a' + 10);
	return value;
}

void wait_for_key(void)
{
	enum { DATA_READY = 1, BETWEEN_LOOKS = 1000000 };
	while (!(inb(COM1_STATUS) & DATA_READY))
		for (u64 until = rdtsc() + BETWEEN_LOOKS; rdtsc() < until;)
			__asm__ volatile("pause");
}

void print(const char *text)
{
	for (; *text; text++)
		outb(COM1, (u8)*text);
}

void print_number(const char *name, u64 value)
{
	char digits[21], *at = digits + 20;
	*at = 0;
	do {
		*--at = (char)('0' + value % 10);
		value /= 10;
	} while (value);
	print(" ");
	print(name);
	print("=");
	print(at);
}

_Noreturn void stop(void)
{
	for (;;)
		__asm__ volatile("pause");
}

_Noreturn void fail(const char *why)
{
	print("\nfailed: ");
	print(why);
	print("\n");
	stop();
}

void section_prepare(struct section *section)
{
	section->begun = 0;
	section->ends = number("ticks", 4000000000);
	section->warm_until = rdtsc() + section->ends / 4;
}

bool section_goes_on(struct section *section, u64 *counter)
{
	u64 now = rdtsc();
	if (section->begun)
		return now < section->ends;
	if (now >= section->warm_until) {
		outb(COM1, 'B');
		*counter = 0;
		section->begun = rdtsc();
		section->ends += section->begun;
	}
	return true;
}

void section_report(const struct section *section, const char *unit, u64 counter)
{
	u64 ended = rdtsc();
	outb(COM1, 'E');
	print("\ndone");
	print_number(unit, counter);
	print_number("ticks", ended - section->begun);
	print("\n");
}

static const struct {
	const char *name;
	void (*function)(void);
	bool ring0;
} works[] = {
	{ "blk-randread", blk_random_read, false },
	{ "blk-seqread", blk_sequential_read, false },
	{ "blk-randwrite", blk_random_write, false },
	{ "blk-flush", blk_write_flush, false },
	{ "net-tx", net_send, false },
	{ "net-tso", net_send_tso, false },
	{ "net-rx", net_receive, false },
	{ "exit-pio", exits_pio, true },
	{ "exit-mmio", exits_mmio, true },
	{ "exit-two", exits_two, true },
	{ "beat", beat, false },
	{ "stamp", stamp, false },
	{ "load", load_everything, true },
};

void main(void)
{
	const char *wanted = word("work");
	for (size_t i = 0; wanted && i < sizeof(works) / sizeof(works[0]); i++) {
		if (!is(wanted, works[i].name))
			continue;
		if (!works[i].ring0)
			enter_ring3(works[i].function);
		works[i].function();
		stop();
	}
	fail("there is no such work");
}
