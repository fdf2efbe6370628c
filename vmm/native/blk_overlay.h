/* Disks of several files, one over the other: a block is read from the uppermost that has it, and written to the top
 * one, which then has it (vmm/host/disk/overlay.py says when that is safe). The threads of all the disk's queues. */
#pragma once

#include "blk_steps.h"

/* The file that has the first of size bytes at offset, and in *run how many of them it has. */
int overlay_find(const struct blk_config *disk, uint64_t offset, uint64_t size, uint64_t *run);
/* Do the request's step, which is no read: bytes or 0, or -errno. */
long overlay_change(struct blk_disk *disk, const struct blk_request *request);
