// System V shared memory for one process whose threads share what it has anyway: fio asks for it, and the micro kernel
// has none. Preloaded in the guest.

#include <stddef.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/shm.h>

static size_t segment_size;

int shmget(key_t key, size_t size, int flags)
{
    (void)key, (void)flags;
    segment_size = size;
    return 0;
}

void *shmat(int id, const void *address, int flags)
{
    (void)id, (void)address, (void)flags;
    return mmap(NULL, segment_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

int shmdt(const void *address)
{
    (void)address;
    return 0;
}

int shmctl(int id, int command, struct shmid_ds *about)
{
    (void)id, (void)command, (void)about;
    return 0;
}
