#include <errno.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "vcpu_api.h"

enum { PLAINS_MAX = 128 };

/* How long what is posted may wait. */
static const struct itimerspec soon = {.it_value.tv_nsec = 1000000}, never;

struct plains {
	pthread_rwlock_t lock;
	pthread_mutex_t posting; /* vCPUs may post at once */
	int timer;
	bool running; /* it will go off */
	uint32_t ports, pages;
	struct plain registers[PLAINS_MAX];
};

struct plains *plains_open(void)
{
	struct plains *plains = calloc(1, sizeof(*plains));
	if (!plains)
		return NULL;
	if (pthread_rwlock_init(&plains->lock, NULL)) {
		free(plains);
		return NULL;
	}
	pthread_mutex_init(&plains->posting, NULL);
	plains->timer = -1;
	return plains;
}

void plains_close(struct plains *plains)
{
	if (plains->timer >= 0)
		close(plains->timer);
	pthread_mutex_destroy(&plains->posting);
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

int plains_timer(struct plains *plains)
{
	if (plains->timer < 0)
		plains->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	return plains->timer;
}

void plains_rewind(struct plains *plains)
{
	timerfd_settime(plains->timer, 0, &never, NULL);
	__atomic_store_n(&plains->running, false, __ATOMIC_SEQ_CST);
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

/* False: there is no room. Whoever rewinds the timer and then takes has this byte, or it makes the timer run. */
static bool post(struct plains *plains, struct posted *posted, uint8_t byte)
{
	pthread_mutex_lock(&plains->posting);
	uint64_t put = posted->put;
	bool fits = put - __atomic_load_n(&posted->taken, __ATOMIC_ACQUIRE) < POSTED_MAX;
	if (fits) {
		posted->bytes[put % POSTED_MAX] = byte;
		__atomic_store_n(&posted->put, put + 1, __ATOMIC_RELEASE);
	}
	pthread_mutex_unlock(&plains->posting);
	if (fits && !__atomic_exchange_n(&plains->running, true, __ATOMIC_SEQ_CST))
		timerfd_settime(plains->timer, 0, &soon, NULL);
	return fits;
}

/* Do an access of at most 8 bytes; false if it is Python's. Several vCPUs may be at one register, as on a real bus. */
static bool answer(struct plains *plains, struct plain *plain, uint64_t address, uint32_t size, void *data,
		   bool is_write)
{
	if (!plain)
		return false;
	if (plain->posted) {
		if (!is_write || plains->timer < 0 || !post(plains, plain->posted, *(uint8_t *)data))
			return false;
	} else {
		if ((is_write && !plain->writable) || !__atomic_load_n(plain->gate, __ATOMIC_ACQUIRE))
			return false;
		uint8_t *at = plain->bytes + (address - plain->address);
		memcpy(is_write ? at : data, is_write ? data : at, size);
	}
	__atomic_fetch_add(plain->accesses, 1, __ATOMIC_RELAXED);
	return true;
}

static bool answer_exit(struct kvm_run *run, struct plains *plains)
{
	bool done = false;
	pthread_rwlock_rdlock(&plains->lock);
	if (run->exit_reason == KVM_EXIT_IO && run->io.count == 1) {
		struct plain *plain = find(plains->registers, plains->ports, run->io.port, run->io.size);
		done = answer(plains, plain, run->io.port, run->io.size, (uint8_t *)run + run->io.data_offset,
			      run->io.direction == KVM_EXIT_IO_OUT);
	} else if (run->exit_reason == KVM_EXIT_MMIO && run->mmio.len) {
		struct plain *part = plains->registers + plains->ports;
		struct plain *plain = find(part, plains->pages, run->mmio.phys_addr, run->mmio.len);
		done = answer(plains, plain, run->mmio.phys_addr, run->mmio.len, run->mmio.data, run->mmio.is_write);
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
