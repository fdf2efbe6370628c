/*
 * fill DEVICE MAC COUNT: put COUNT 64-byte frames to MAC (hexadecimal digits) in the queue of the tap DEVICE, for which
 * it must have room. Fails if the tap drops one.
 */
#define _GNU_SOURCE
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

enum { FRAME_SIZE = 64, BATCH = 64 };

int main(int count, char **arguments)
{
	unsigned char frame[FRAME_SIZE] = { 0 };
	unsigned long long mac = count == 4 ? strtoull(arguments[2], NULL, 16) : 0;
	for (int i = 0; i < ETH_ALEN; i++)
		frame[i] = (unsigned char)(mac >> 8 * (ETH_ALEN - 1 - i));
	frame[6] = 2, frame[11] = 0xee;
	frame[12] = 0x88, frame[13] = 0xb5; /* for local experiments */
	struct sockaddr_ll address = { .sll_family = AF_PACKET, .sll_halen = ETH_ALEN };
	address.sll_ifindex = count == 4 ? (int)if_nametoindex(arguments[1]) : 0;
	int fd = socket(AF_PACKET, SOCK_RAW, 0), one = 1;
	if (!address.sll_ifindex || fd < 0 || setsockopt(fd, SOL_PACKET, PACKET_QDISC_BYPASS, &one, sizeof(one))) {
		perror("fill");
		return 1;
	}
	struct iovec vector = { frame, sizeof(frame) };
	struct mmsghdr messages[BATCH];
	memset(messages, 0, sizeof(messages));
	for (int i = 0; i < BATCH; i++)
		messages[i].msg_hdr = (struct msghdr){ .msg_name = &address, .msg_namelen = sizeof(address),
						       .msg_iov = &vector, .msg_iovlen = 1 };
	for (long left = atol(arguments[3]); left > 0;) {
		int sent = sendmmsg(fd, messages, left < BATCH ? (unsigned)left : BATCH, 0);
		if (sent < 0) {
			fprintf(stderr, "fill: %ld frames are left: ", left);
			perror("");
			return 1;
		}
		left -= sent;
	}
	return 0;
}
