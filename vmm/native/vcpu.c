#include <errno.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "vcpu_api.h"

enum { PLAINS_MAX = 128 };

struct plains {
	pthread_rwlock_t lock;
	uint32_t ports, pages;
	struct plain registers[PLAINS_MAX];
};

struct plains *plains_open(void)
{
	struct plains *plains = calloc(1, sizeof(*plains));
	if (plains && pthread_rwlock_init(&plains->lock, NULL)) {
		free(plains);
		return NULL;
	}
	return plains;
}

void plains_close(struct plains *plains)
{
	pthread_rwlock_destroy(&plains->lock);
	free(plains);
}

bool plains_replace(struct plains *plains, const struct plain *registers, uint32_t ports, uint32_t pages)
{
	bool fits = ports <= PLAINS_MAX && pages <= PLAINS_MAX - ports;
	pthread_rwlock_wrlock(&plains->lock);
	plains->ports = fits ? ports : 0;
	plains->pages = fits ? pages : 0;
	if (fits)
		memcpy(plains->registers, registers, sizeof(*registers) * (ports + pages));
	pthread_rwlock_unlock(&plains->lock);
	return fits;
}

/* The register of the sorted *part* that holds an access, or NULL. */
static struct plain *find(struct plain *part, uint32_t count, uint64_t address, uint32_t size)
{
	while (count) {
		struct plain *middle = part + count / 2;
		if (address < middle->address) {
			count /= 2;
		} else if (address - middle->address >= middle->size) {
			count -= count / 2 + 1;
			part = middle + 1;
		} else {
			bool fits = size <= middle->size - (address - middle->address);
			return fits && (!middle->width || middle->width == size) ? middle : NULL;
		}
	}
	return NULL;
}

/* Do an access of at most 8 bytes; false if it is Python's. Several vCPUs may be at one register, as on a real bus. */
static bool answer(struct plain *plain, uint64_t address, uint32_t size, void *data, bool is_write)
{
	if (!plain || (is_write && !plain->writable))
		return false;
	uint8_t *at = plain->bytes + (address - plain->address);
	if (is_write)
		memcpy(at, data, size);
	else
		memcpy(data, at, size);
	__atomic_fetch_add(plain->accesses, 1, __ATOMIC_RELAXED);
	return true;
}

static bool answer_exit(struct kvm_run *run, struct plains *plains)
{
	bool done = false;
	pthread_rwlock_rdlock(&plains->lock);
	if (run->exit_reason == KVM_EXIT_IO && run->io.count == 1) {
		struct plain *plain = find(plains->registers, plains->ports, run->io.port, run->io.size);
		done = answer(plain, run->io.port, run->io.size, (uint8_t *)run + run->io.data_offset,
			      run->io.direction == KVM_EXIT_IO_OUT);
	} else if (run->exit_reason == KVM_EXIT_MMIO && run->mmio.len) {
		struct plain *part = plains->registers + plains->ports;
		struct plain *plain = find(part, plains->pages, run->mmio.phys_addr, run->mmio.len);
		done = answer(plain, run->mmio.phys_addr, run->mmio.len, run->mmio.data, run->mmio.is_write);
	}
	pthread_rwlock_unlock(&plains->lock);
	return done;
}

int vcpu_run(int fd, void *run, struct plains *plains)
{
	do {
		if (ioctl(fd, KVM_RUN, 0) < 0)
			return errno;
	} while (answer_exit(run, plains));
	return 0;
}
