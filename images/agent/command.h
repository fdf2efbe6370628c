/* Commands: EXEC, STDIN, SIGNAL, and what they answer; and SYNC, a process too. */
#ifndef COMMAND_H
#define COMMAND_H

#include "connection.h"

#include <asm/ioctls.h>
#include <sched.h>
#include <sys/wait.h>

#define VECTOR_MAX 4096
#define X_OK 1

static int nothing; /* /dev/null */

/*
 * execve, along PATH unless there is a slash; returns the most telling error.  It is asked for files that are there only:
 * on a host that interprets ring 0 each failing execve costs 25 ms.
 */
static long execute(char **argv, char **environment)
{
    static char file[PATH_BYTES];
    const char *path = "/usr/sbin:/usr/bin:/sbin:/bin", *given;
    size_t name = length(argv[0]);
    long error = -ENOENT;

    for (const char *at = argv[0]; *at; at++)
        if (*at == '/')
            return SYS(execve, argv[0], argv, environment, 0, 0);
    for (char **entry = environment; *entry; entry++)
        if ((given = after(*entry, "PATH=")))
            path = given;
    while (*path && name) {
        size_t size = 0;
        while (path[size] && path[size] != ':')
            size++;
        if (size + 1 + name + 1 <= sizeof file) {
            memcpy(file, path, size);
            file[size] = '/';
            memcpy(file + size + 1, argv[0], name + 1);
            long failed = SYS(access, file, X_OK, 0, 0, 0);
            if (!failed)
                failed = SYS(execve, file, argv, environment, 0, 0);
            if (failed != -ENOENT && failed != -ENOTDIR)
                error = failed;
        }
        path += size + (path[size] == ':');
    }
    return error;
}

static void handle_broken_pipes(void (*handler)(int))
{
    struct {
        void (*handler)(int);
        unsigned long flags;
        void (*restorer)(void);
        unsigned long mask;
    } action = {.handler = handler};

    SYS(rt_sigaction, SIGPIPE, &action, NULL, sizeof action.mask, 0);
}

/* Starts a command with these standard streams; 0, or why it cannot be started. */
static long spawn(struct connection *c, const int *streams, const char *directory, char **argv, char **environment)
{
    static volatile long failed; /* the child, which shares our memory until it executes, tells here */
    int pidfd = -1;

    failed = 0;
    long pid = SYS(clone, CLONE_VM | CLONE_VFORK | CLONE_PIDFD | SIGCHLD, 0, &pidfd, 0, 0);
    if (pid < 0)
        return pid;
    if (!pid) {
        SYS(setsid, 0, 0, 0, 0, 0);
        handle_broken_pipes(SIG_DFL);
        for (int number = 0; number < 3; number++)
            SYS(dup2, streams[number], number, 0, 0, 0);
        failed = *directory ? SYS(chdir, directory, 0, 0, 0, 0) : 0;
        if (failed >= 0)
            failed = execute(argv, environment);
        SYS(exit, 127, 0, 0, 0, 0);
        __builtin_unreachable();
    }
    c->pid = pid;
    c->ended = 0;
    c->fd[PROCESS] = pidfd;
    if (failed) {
        SYS(wait4, pid, NULL, 0, NULL, 0);
        close_fd(&c->fd[PROCESS]);
        c->pid = 0;
    }
    return failed;
}

/* Payload: le32 flags, le32 number of arguments, working directory, arguments, environment, each with its NUL. */
static long start_command(struct connection *c, char *payload, unsigned size)
{
    static char *vector[VECTOR_MAX + 2];
    uint32_t head[2];
    char *cursor = payload + sizeof head, *end = payload + size, *text, *directory;
    unsigned count = 0;
    int in[2] = {nothing, -1}, out[2], errors[2] = {-1, -1};
    long error;

    if (size < sizeof head)
        return -EINVAL;
    memcpy(head, payload, sizeof head);
    directory = next_string(&cursor, end);
    if (!directory || !head[1] || head[1] > VECTOR_MAX)
        return -EINVAL;
    while (count < VECTOR_MAX + 1 && (text = next_string(&cursor, end))) {
        vector[count++] = text;
        if (count == head[1])
            vector[count++] = NULL;
    }
    if (count <= head[1] || cursor != end)
        return count <= head[1] ? -EINVAL : -E2BIG;
    vector[count] = NULL;

    if ((error = SYS(pipe2, out, O_CLOEXEC, 0, 0, 0)) < 0)
        return error;
    if ((error = SYS(pipe2, errors, O_CLOEXEC, 0, 0, 0)) < 0)
        goto no_errors;
    if (head[0] & EXEC_STDIN) {
        if ((error = SYS(pipe2, in, O_CLOEXEC, 0, 0, 0)) < 0)
            goto no_input;
        SYS(fcntl, in[1], F_SETFL, O_WRONLY | O_NONBLOCK, 0, 0);
    }
    int streams[3] = {in[0], out[1], errors[1]};
    error = spawn(c, streams, directory, vector, vector + head[1] + 1);
    if (in[0] != nothing)
        close_fd(&in[0]);
no_input:
    close_fd(&errors[1]);
no_errors:
    close_fd(&out[1]);
    c->fd[INPUT] = in[1];
    c->fd[OUTPUT] = out[0];
    c->fd[ERRORS] = errors[0];
    if (error) {
        close_fd(&c->fd[INPUT]);
        close_fd(&c->fd[OUTPUT]);
        close_fd(&c->fd[ERRORS]);
        return error;
    }
    c->busy = EXEC;
    return 0;
}

/* Gives the command what it has not had of a STDIN frame; whether that was all of it. */
static int feed(struct connection *c, const char *payload, unsigned size)
{
    while (c->fd[INPUT] >= 0 && c->done < size) {
        long count = SYS(write, c->fd[INPUT], payload + c->done, size - c->done, 0, 0);
        if (count == -EAGAIN)
            return 0;
        if (count < 0)
            close_fd(&c->fd[INPUT]); /* it reads no more */
        else
            c->done += count;
    }
    if (!size)
        close_fd(&c->fd[INPUT]);
    return 1;
}

static void forward(struct connection *c, int file, enum frame type)
{
    unsigned most = c->ended && c->left[file] < FRAME_MAX ? c->left[file] : FRAME_MAX;
    long count = SYS(read, c->fd[file], c->out_data + HEADER, most, 0, 0);

    if (count == -EINTR)
        return;
    if (count > 0)
        send_frame(c, type, count);
    if (count <= 0 || (c->ended && !(c->left[file] -= count)))
        close_fd(&c->fd[file]);
}

/* The process has ended: what its pipes hold by now is the last of its output, whoever else goes on writing. */
static void note_end(struct connection *c)
{
    c->ended = 1;
    for (int file = OUTPUT; file <= ERRORS; file++) {
        c->left[file] = 0;
        if (c->fd[file] >= 0)
            SYS(ioctl, c->fd[file], FIONREAD, &c->left[file], 0, 0);
        if (!c->left[file])
            close_fd(&c->fd[file]);
    }
}

/* Once its output is forwarded. */
static void finish_process(struct connection *c)
{
    enum frame busy = c->busy;
    int status = 0;

    if (SYS(wait4, c->pid, &status, WNOHANG, NULL, 0) == 0)
        return;
    c->pid = 0;
    close_fd(&c->fd[PROCESS]);
    close_fd(&c->fd[INPUT]);
    c->busy = 0;
    if (busy == EXEC)
        send_number(c, EXIT, status);
    else if (busy == SYNC)
        answer(c, status);
}

/* sync(2) may take minutes, for which nobody else is to wait. */
static long start_sync(struct connection *c)
{
    int pidfd = -1;
    /* The files are shared, else what we close would stay open until it has ended. */
    long pid = SYS(clone, CLONE_FILES | CLONE_PIDFD | SIGCHLD, 0, &pidfd, 0, 0);

    if (pid < 0)
        return pid;
    if (!pid) {
        SYS(sync, 0, 0, 0, 0, 0);
        SYS(exit, 0, 0, 0, 0, 0);
        __builtin_unreachable();
    }
    c->pid = pid;
    c->ended = 0;
    c->fd[PROCESS] = pidfd;
    c->busy = SYNC;
    return 0;
}

#endif
