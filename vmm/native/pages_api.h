/* Guest memory from and to files. Bitmaps have a bit for each page of 4 KiB, the lowest of a byte first. */
#pragma once

#include <stdint.h>

/* A checksum of the pages (NULL: of all); those of zeroes do not count. */
uint64_t pages_sum(const void *host, uint64_t count, const uint8_t *which);
/* Map the pages, which lie in the file from offset at on as they do in memory, over what is there: private, writable. 0
 * or an errno, with a part of it done. */
int pages_map(int fd, uint64_t at, void *host, uint64_t count, const uint8_t *which);
/* Have the pages, which are mapped, read now. 0 or an errno. */
int pages_fetch(void *host, uint64_t count, const uint8_t *which);
/* In a child process, with the memory as it is now: of the pages of the bitmap, and all others that are this process's
 * own, write to the file from offset at on what is not the same at base (NULL: zeroes). The bitmap becomes that of what
 * the file says, *sum its checksum. The child's id, or a negative errno; it exits with the errno. The memory is private,
 * *sum and the bitmap are shared. The child dies with the calling thread. */
int pages_write_apart(int fd, uint64_t at, const void *host, const void *base, uint64_t count, uint8_t *which,
                      uint64_t *sum);
