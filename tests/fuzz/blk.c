/* The parser of block requests, behind the ring's. Uses: ring.c blk_request.c */
#include "guest.h"

#include "blk_request.h"

static void check_request(const struct blk_config *disk, const struct chain *chain, const struct blk_request *request)
{
    uint64_t sum = 0;

    check(request->kind < KINDS && request->status <= STATUS_UNSUPP && request->head == chain->head);
    check(!request->status_at == !chain->writable_bytes);
    check(!request->status_at || in_guest(request->status_at, 1));
    check(request->read <= request->room && blk_written(request) <= chain->writable_bytes);
    if (request->step == STEP_NONE || request->step == STEP_SYNC)
        return;
    check(request->status == STATUS_OK);
    check(request->left > 0 && request->left <= disk->size_bytes);
    check(request->offset <= disk->size_bytes - request->left);
    check(request->offset % SECTOR == 0 && request->left % SECTOR == 0);
    check(request->step == STEP_READ || !disk->readonly);
    if (request->step != STEP_READ && request->step != STEP_WRITE)
        return;
    for (unsigned i = 0; i < request->count; i++) {
        check(in_guest(request->iov[i].iov_base, request->iov[i].iov_len) && request->iov[i].iov_len);
        sum += request->iov[i].iov_len;
    }
    check(sum == request->left);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct iovec iov[PIECES];
    struct blk_config disk = {.size_bytes = 64 * SECTOR, .serial = "serial"};
    struct blk_request request;
    struct ring ring;
    struct chain chain;
    struct fault fault;

    if (!open_guest(&ring, data, size))
        return 0;
    disk.readonly = data[3] & 1;
    disk.discard = data[3] & 2;
    disk.write_zeroes = data[3] & 4;
    disk.flush = data[3] & 8;
    for (int turn = 0; turn < 100 && ring_pop(&ring, &chain, iov, &fault) > 0; turn++) {
        check_chain(&chain);
        blk_parse(&disk, &chain, &request);
        check_request(&disk, &chain, &request);
    }
    return 0;
}
