/*
 * What the agent and its clients say to each other; docs/agent.md tells what each frame holds.
 *
 * A frame: le32 size of the payload, le32 type, payload.
 */
#ifndef PROTOCOL_H
#define PROTOCOL_H

#define AGENT_VERSION 1
#define AGENT_PORT 1023 /* the last one that only root may listen at */
#define FRAME_MAX 65536

enum frame {
    HELLO = 1,
    EXEC,
    STDIN,
    SIGNAL,
    PUT,
    GET,
    DATA,
    END,
    TIME,
    RESEED,
    SYNC,
    RENEW,
    OK = 32,
    ERROR,
    STDOUT,
    STDERR,
    EXIT,
};

enum exec_flags {
    EXEC_STDIN = 1, /* STDIN frames follow; else it is empty */
};

#endif
