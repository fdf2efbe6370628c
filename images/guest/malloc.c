/*
 * malloc() of the guests' busybox, which has one thread and mostly lives for milliseconds.
 *
 * musl's gives blocks of each size a mapping of their own: a shell that starts and ends makes five, and touches ten pages
 * there.  This one cuts blocks of 2^n and 3 * 2^n bytes one after the other out of .bss, later out of mappings, and keeps
 * those that are freed in a list per size.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define FIRST_BYTES (32 << 10)
#define ARENA_BYTES (256 << 10)
#define LARGEST (64 << 10) /* of the blocks in lists; a larger one is a mapping, and goes back to the kernel */
#define SIZES 23           /* 32, 48, 64, 96 ... LARGEST */

struct block {
    _Alignas(16) size_t size; /* with this header */
    struct block *next;       /* in the list of the free ones */
};

static struct block first[FIRST_BYTES / sizeof(struct block)];
static char *cut = (char *)first, *end = (char *)first + sizeof first;
static struct block *freed[SIZES];

/* The number of the smallest size that holds `bytes`, which becomes this size. */
static unsigned size_number(size_t *bytes)
{
    unsigned number = 0;
    size_t size = 32;

    while (size < *bytes) {
        size += number % 2 ? size / 3 : size / 2;
        number++;
    }
    *bytes = size;
    return number;
}

static void *map(size_t bytes)
{
    void *start = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    return start == MAP_FAILED ? NULL : start;
}

/* The next `size` bytes that no block has had yet; what is left of an arena that is too small is lost. */
static struct block *cut_off(size_t size)
{
    if ((size_t)(end - cut) < size) {
        char *arena = map(ARENA_BYTES);
        if (!arena)
            return NULL;
        cut = arena;
        end = arena + ARENA_BYTES;
    }
    struct block *block = (struct block *)cut;
    cut += size;
    return block;
}

void *malloc(size_t bytes)
{
    struct block *block;

    if (bytes > PTRDIFF_MAX - sizeof *block) {
        errno = ENOMEM;
        return NULL;
    }
    bytes += sizeof *block;
    if (bytes > LARGEST) {
        block = map(bytes);
    } else {
        struct block **list = &freed[size_number(&bytes)];
        block = *list;
        if (block)
            *list = block->next;
        else
            block = cut_off(bytes);
    }
    if (!block)
        return NULL;
    block->size = bytes;
    return block + 1;
}

void free(void *memory)
{
    if (!memory)
        return;
    struct block *block = (struct block *)memory - 1;
    if (block->size > LARGEST) {
        munmap(block, block->size);
    } else {
        size_t size = block->size;
        struct block **list = &freed[size_number(&size)];
        block->next = *list;
        *list = block;
    }
}

void *calloc(size_t count, size_t bytes)
{
    void *memory = malloc(__builtin_mul_overflow(count, bytes, &bytes) ? SIZE_MAX : bytes);

    if (memory && bytes <= LARGEST - sizeof(struct block)) /* a mapping is zero already */
        memset(memory, 0, bytes);
    return memory;
}

void *realloc(void *memory, size_t bytes)
{
    if (!memory)
        return malloc(bytes);
    struct block *block = (struct block *)memory - 1;
    size_t capacity = block->size - sizeof *block;
    if (block->size > LARGEST && bytes > LARGEST && bytes <= PTRDIFF_MAX - sizeof *block) {
        block = mremap(block, block->size, bytes + sizeof *block, MREMAP_MAYMOVE);
        if (block == MAP_FAILED)
            return NULL;
        block->size = bytes + sizeof *block;
        return block + 1;
    }
    if (bytes <= capacity && block->size <= LARGEST)
        return memory;
    void *moved = malloc(bytes);
    if (moved) {
        memcpy(moved, memory, bytes < capacity ? bytes : capacity);
        free(memory);
    }
    return moved;
}
