/* The time stamp counter, for Python. */
#include <x86intrin.h>

unsigned long long tsc(void)
{
	return __rdtsc();
}
