/* Guest memory on its way to a file. Bitmaps have a bit for each page of 4 KiB, the lowest of a byte first. */
#pragma once

#include <stdint.h>

/* Add the pages that are this process's own to the bitmap: touched, in anonymous memory; changed, in a private mapping.
 * 0 or an errno. */
int pages_touched(const void *host, uint64_t count, uint8_t *bitmap);
/* A checksum of all pages; those of zeroes do not count. */
uint64_t pages_sum(const void *host, uint64_t count);
/* Write the wanted pages to the file, from offset at on, but for those of zeroes; and the checksum of all that was
 * written. 0 or an errno. */
int pages_write(int fd, uint64_t at, const void *host, uint64_t count, const uint8_t *wanted, uint64_t *sum);
/* The same in a child process, with the memory as it is now: its id, or a negative errno. It exits with the errno. The
 * memory is private, *sum and the bitmap are shared. The child dies with the calling thread. */
int pages_write_apart(int fd, uint64_t at, const void *host, uint64_t count, const uint8_t *wanted, uint64_t *sum);
