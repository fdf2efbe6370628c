/*
 * System calls without a C library, so that PID 1 is a few kilobytes: every page that exec maps and every megabyte that
 * an initrd unpacks is time on a host that interprets ring 0.
 *
 * A call returns the kernel's value: negative errno on failure.
 */
#ifndef SYS_H
#define SYS_H

#include <asm/unistd.h>
#include <stddef.h>

static inline long sys6(long number, long a, long b, long c, long d, long e, long f)
{
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    long result;

    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

#define SYS(name, a, b, c, d, e) \
    sys6(__NR_##name, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), 0)

/* gcc makes calls of these by itself. */
void *memset(void *to, int byte, size_t size)
{
    void *start = to;
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(size) : "a"(byte) : "memory");
    return start;
}

static inline size_t length(const char *text)
{
    size_t size = 0;
    while (text[size])
        size++;
    return size;
}

/* The rest of `text` after `prefix`, or NULL. */
static inline const char *after(const char *text, const char *prefix)
{
    while (*prefix)
        if (*text++ != *prefix++)
            return NULL;
    return text;
}

#endif
