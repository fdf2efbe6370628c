/*
 * PID 1 of both images, of their initrds and of their root disks.
 *
 *   in an initrd   load /etc/modules, mount root= if the command line has one, go on as its /sbin/init
 *   always         mount proc, sys, dev; bring up lo; pyvmm's agent, if the machine has a virtio-vsock device;
 *                  a root shell on the console, again and again
 *   signals        USR1 halt, USR2 power off, TERM and INT (Ctrl-Alt-Del) restart: as busybox halt, poweroff, reboot send
 *
 * One process from the kernel to the prompt, and one vfork for the shell: a fork costs 40 ms on a host that interprets
 * ring 0, a shell that runs `mount` costs 200.
 */
#include "sys.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <linux/reboot.h>
#include <linux/vm_sockets.h>
#include <net/if.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/utsname.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <time.h>

#define WAIT_FOR_ROOT_MS 5000
#define WAIT_FOR_EXIT_MS 500
#define SIGNAL(number) (1ul << ((number)-1))

static const unsigned long watched =
    SIGNAL(SIGCHLD) | SIGNAL(SIGUSR1) | SIGNAL(SIGUSR2) | SIGNAL(SIGTERM) | SIGNAL(SIGINT);

static char command_line[4096];
static char *const shell_argv[] = {"-sh", NULL};
static char *const init_argv[] = {"init", NULL};
static char *const agent_argv[] = {"pyvmm-agent", NULL};
static char *const environment[] = {
    "PATH=/sbin:/usr/sbin:/bin:/usr/bin", "HOME=/root", "USER=root", "SHELL=/bin/sh", "TERM=vt102",
    "PS1=root@\\h:\\w# ", NULL,
};

static void say(const char *text, const char *subject)
{
    SYS(write, 2, "init: ", 6, 0, 0);
    SYS(write, 2, text, length(text), 0, 0);
    SYS(write, 2, subject, length(subject), 0, 0);
    SYS(write, 2, "\n", 1, 0, 0);
}

static void sleep_ms(long ms)
{
    struct timespec time = {ms / 1000, ms % 1000 * 1000000};
    SYS(nanosleep, &time, NULL, 0, 0, 0);
}

/* Reads a small file whole, with a NUL at its end; its size, or a negative errno. */
static long read_file(const char *path, char *buffer, long capacity)
{
    long fd = SYS(open, path, O_RDONLY | O_CLOEXEC, 0, 0, 0);
    long size = 0, count;

    if (fd < 0)
        return fd;
    while (size < capacity - 1 && (count = SYS(read, fd, buffer + size, capacity - 1 - size, 0, 0)) > 0)
        size += count;
    SYS(close, fd, 0, 0, 0, 0);
    buffer[size] = 0;
    return size;
}

/* Cuts the next word that ends in one of `separators` out of *cursor; NULL at the end. */
static char *next_word(char **cursor, char separator)
{
    char *word = *cursor;

    while (*word == separator || *word == '\n')
        word++;
    if (!*word)
        return NULL;
    char *end = word;
    while (*end && *end != separator && *end != '\n')
        end++;
    *cursor = *end ? end + 1 : end;
    *end = 0;
    return word;
}

/* Inserts the modules that /etc/modules lists, and gives the memory of each file back. */
static void load_modules(void)
{
    static char list[4096];
    char *cursor = list, *path;

    if (read_file("/etc/modules", list, sizeof list) < 0)
        return;
    while ((path = next_word(&cursor, '\n'))) {
        long fd = SYS(open, path, O_RDONLY | O_CLOEXEC, 0, 0, 0);
        if (fd < 0 || SYS(finit_module, fd, "", 0, 0, 0) < 0)
            say("cannot load ", path);
        SYS(close, fd, 0, 0, 0, 0);
        SYS(unlink, path, 0, 0, 0, 0);
    }
}

/* Mounts the root= of the command line over / and runs its init; returns only if there is none or it fails. */
static void switch_root(void)
{
    const char *root = NULL, *type = "ext4", *value;
    unsigned long flags = MS_RDONLY;
    char *cursor = command_line, *word;
    long error, waited = 0;

    while ((word = next_word(&cursor, ' '))) {
        if ((value = after(word, "root=")))
            root = value;
        else if ((value = after(word, "rootfstype=")))
            type = value;
        else if ((value = after(word, "rw")) && !*value)
            flags = 0;
    }
    if (!root)
        return;
    SYS(mkdir, "/root", 0755, 0, 0, 0);
    while ((error = SYS(mount, root, "/root", type, flags, NULL)) < 0 && waited < WAIT_FOR_ROOT_MS) {
        sleep_ms(10);
        waited += 10;
    }
    if (error < 0) {
        say("cannot mount the root file system ", root);
        return;
    }
    SYS(mount, "/dev", "/root/dev", NULL, MS_MOVE, NULL);
    SYS(mount, "/proc", "/root/proc", NULL, MS_MOVE, NULL);
    SYS(mount, "/sys", "/root/sys", NULL, MS_MOVE, NULL);
    SYS(unlink, "/bin/busybox", 0, 0, 0, 0);
    SYS(chdir, "/root", 0, 0, 0, 0);
    SYS(mount, ".", "/", NULL, MS_MOVE, NULL);
    SYS(chroot, ".", 0, 0, 0, 0);
    SYS(execve, "/sbin/init", init_argv, environment, 0, 0);
    say("cannot run /sbin/init of ", root);
}

/* The image's name, unless the kernel was given one; with ip= it takes the address for want of a better one. */
static void set_hostname(void)
{
    struct utsname name;
    char host[65], *cursor = host, *word;

    SYS(uname, &name, 0, 0, 0, 0);
    if ((name.nodename[0] != '(' && !(name.nodename[0] >= '0' && name.nodename[0] <= '9')) ||
        read_file("/etc/hostname", host, sizeof host) < 0)
        return;
    if ((word = next_word(&cursor, '\n')))
        SYS(sethostname, word, length(word), 0, 0, 0);
}

static void bring_up_loopback(void)
{
    struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP};
    long fd = SYS(socket, AF_INET, SOCK_DGRAM, 0, 0, 0);

    SYS(ioctl, fd, SIOCSIFFLAGS, &request, 0, 0);
    SYS(close, fd, 0, 0, 0, 0);
}

/* The terminal behind /dev/console, which itself cannot be a controlling terminal. */
static const char *console_path(void)
{
    static char serial[] = "/dev/ttyS0", hypervisor[] = "/dev/hvc0";
    unsigned device = 0;

    SYS(ioctl, 0, TIOCGDEV, &device, 0, 0);
    unsigned major = device >> 8 & 0xfff, minor = device & 0xff;
    if (major == 4 && minor >= 64 && minor < 74) {
        serial[sizeof serial - 2] = '0' + (minor - 64);
        return serial;
    }
    if (major == 229 && minor < 10) {
        hypervisor[sizeof hypervisor - 2] = '0' + minor;
        return hypervisor;
    }
    return "/dev/console";
}

/* Starts the shell in a session of its own; its pid. */
static long start_shell(void)
{
    const char *terminal = console_path();
    unsigned long none = 0;
    long pid = SYS(vfork, 0, 0, 0, 0, 0);

    if (pid)
        return pid;
    SYS(setsid, 0, 0, 0, 0, 0);
    long fd = SYS(open, terminal, O_RDWR, 0, 0, 0);
    if (fd >= 0) {
        SYS(ioctl, fd, TIOCSCTTY, 1, 0, 0);
        SYS(dup2, fd, 0, 0, 0, 0);
        SYS(dup2, fd, 1, 0, 0, 0);
        SYS(dup2, fd, 2, 0, 0, 0);
        if (fd > 2)
            SYS(close, fd, 0, 0, 0, 0);
    }
    SYS(rt_sigprocmask, SIG_SETMASK, &none, NULL, sizeof none, 0);
    SYS(chdir, "/root", 0, 0, 0, 0);
    SYS(execve, "/bin/sh", shell_argv, environment, 0, 0);
    say("cannot run ", "/bin/sh");
    SYS(exit, 127, 0, 0, 0, 0);
    __builtin_unreachable();
}

/* Starts the agent; its pid, or 0 where there is no way to the host. */
static long start_agent(void)
{
    unsigned long none = 0;
    unsigned cid = VMADDR_CID_ANY;
    long fd = SYS(open, "/dev/vsock", O_RDONLY | O_CLOEXEC, 0, 0, 0);

    SYS(ioctl, fd, IOCTL_VM_SOCKETS_GET_LOCAL_CID, &cid, 0, 0);
    SYS(close, fd, 0, 0, 0, 0);
    if (cid == VMADDR_CID_ANY)
        return 0;
    long pid = SYS(vfork, 0, 0, 0, 0, 0);
    if (pid)
        return pid;
    SYS(rt_sigprocmask, SIG_SETMASK, &none, NULL, sizeof none, 0);
    SYS(execve, "/sbin/pyvmm-agent", agent_argv, environment, 0, 0);
    SYS(exit, 127, 0, 0, 0, 0);
    __builtin_unreachable();
}

/* Ends every process, makes the disks clean and leaves the machine. */
static void shut_down(unsigned command)
{
    long waited = 0;

    SYS(kill, -1, SIGTERM, 0, 0, 0);
    SYS(kill, -1, SIGHUP, 0, 0, 0);
    SYS(kill, -1, SIGCONT, 0, 0, 0);
    while (SYS(wait4, -1, NULL, WNOHANG, NULL, 0) >= 0 && waited < WAIT_FOR_EXIT_MS) {
        sleep_ms(5);
        waited += 5;
    }
    SYS(kill, -1, SIGKILL, 0, 0, 0);
    SYS(sync, 0, 0, 0, 0, 0);
    SYS(mount, NULL, "/", NULL, MS_REMOUNT | MS_RDONLY, NULL);
    SYS(reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, command, NULL, 0);
}

static void set_up(void)
{
    struct statfs root;

    if (SYS(access, "/proc/self", 0, 0, 0, 0) < 0) /* in a root that came from an initrd it is there already */
        SYS(mount, "proc", "/proc", "proc", 0, NULL);
    SYS(mount, "sysfs", "/sys", "sysfs", 0, NULL);
    SYS(mount, "devtmpfs", "/dev", "devtmpfs", 0, NULL);
    SYS(statfs, "/", &root, 0, 0, 0);
    if (root.f_type == RAMFS_MAGIC || root.f_type == TMPFS_MAGIC) {
        load_modules();
        if (read_file("/proc/cmdline", command_line, sizeof command_line) > 0)
            switch_root();
    }
    SYS(mkdir, "/dev/pts", 0755, 0, 0, 0);
    SYS(mount, "devpts", "/dev/pts", "devpts", 0, NULL);
    set_hostname();
    bring_up_loopback();
}

__attribute__((force_align_arg_pointer, noreturn)) void _start(void)
{
    unsigned long set = watched;
    long agent, shell, pid;
    int status;

    SYS(rt_sigprocmask, SIG_BLOCK, &set, NULL, sizeof set, 0);
    SYS(reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_CAD_OFF, NULL, 0);
    set_up();
    agent = start_agent();
    shell = start_shell();
    for (;;) {
        switch (SYS(rt_sigtimedwait, &set, NULL, NULL, sizeof set, 0)) {
        case SIGCHLD:
            while ((pid = SYS(wait4, -1, &status, WNOHANG, NULL, 0)) > 0)
                if (pid == shell) {
                    if (status == 127 << 8)
                        sleep_ms(1000);
                    shell = start_shell();
                } else if (pid == agent && (status & 0x7f)) /* killed: it does not end by itself but in vain */
                    agent = start_agent();
            break;
        case SIGUSR1:
            shut_down(LINUX_REBOOT_CMD_HALT);
            break;
        case SIGUSR2:
            shut_down(LINUX_REBOOT_CMD_POWER_OFF);
            break;
        case SIGTERM:
        case SIGINT:
            shut_down(LINUX_REBOOT_CMD_RESTART);
            break;
        }
    }
}
