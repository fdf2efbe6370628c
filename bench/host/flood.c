/*
 * flood DEVICE MAC: send 64-byte frames to MAC (hexadecimal digits) on the tap DEVICE, as fast as whoever reads the tap
 * takes them, until killed. A tap drops what its queue cannot hold; this then sleeps a moment, so as to leave the
 * processor to the reader, much shorter than the queue lasts.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>

enum { FRAME_SIZE = 64, BATCH = 64, PAUSE_NS = 100000 };

int main(int count, char **arguments)
{
	unsigned char frame[FRAME_SIZE] = { 0 };
	unsigned long long mac = count == 3 ? strtoull(arguments[2], NULL, 16) : 0;
	for (int i = 0; i < ETH_ALEN; i++)
		frame[i] = (unsigned char)(mac >> 8 * (ETH_ALEN - 1 - i));
	frame[6] = 2, frame[11] = 0xee;
	frame[12] = 0x88, frame[13] = 0xb5; /* for local experiments */
	struct sockaddr_ll address = { .sll_family = AF_PACKET, .sll_halen = ETH_ALEN };
	address.sll_ifindex = count == 3 ? (int)if_nametoindex(arguments[1]) : 0;
	int fd = socket(AF_PACKET, SOCK_RAW, 0), one = 1;
	if (!address.sll_ifindex || fd < 0 || setsockopt(fd, SOL_PACKET, PACKET_QDISC_BYPASS, &one, sizeof(one))) {
		perror("flood");
		return 1;
	}
	prctl(PR_SET_TIMERSLACK, 1);
	struct iovec vector = { frame, sizeof(frame) };
	struct mmsghdr messages[BATCH];
	memset(messages, 0, sizeof(messages));
	for (int i = 0; i < BATCH; i++)
		messages[i].msg_hdr = (struct msghdr){ .msg_name = &address, .msg_namelen = sizeof(address),
						       .msg_iov = &vector, .msg_iovlen = 1 };
	for (;;)
		if (sendmmsg(fd, messages, BATCH, 0) < BATCH)
			nanosleep(&(struct timespec){ .tv_nsec = PAUSE_NS }, NULL);
}
