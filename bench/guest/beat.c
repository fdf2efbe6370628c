/* A guest that stands still, or goes on: what tells how long it did, and when. */
#include "guest.h"

enum { FROM = 16 << 20, PAGE = 4096 };

/* Memory full of noise, and a byte again and again: who misses one knows how long the guest stood. Before each byte the
 * next page of the first *dirty* bytes of it changes. */
void beat(void)
{
	u64 noise = rdtsc() | 1, *at = (u64 *)FROM, *end = at + number("bytes", 0) / sizeof(*at);
	for (; at < end; at++) {
		noise ^= noise << 13, noise ^= noise >> 7, noise ^= noise << 17;
		*at = noise;
	}
	for (u64 dirty = number("dirty", 0), changed = 0;; changed += PAGE) {
		if (dirty)
			*(u64 *)(FROM + changed % dirty) += noise;
		outb(COM1, 'a');
	}
}

/* Looks at the time stamp counter without end, and tells what it says when much has gone by since the last look. */
void stamp(void)
{
	u64 gap = number("gap", 100000000), last = rdtsc();
	print("a");
	for (;;) {
		u64 now = rdtsc();
		if (now - last > gap) {
			print_number("stamp", now);
			print("\n");
			now = rdtsc();
		}
		last = now;
	}
}
