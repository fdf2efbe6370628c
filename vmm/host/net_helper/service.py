"""The helper itself: a process for each connection, which lasts as long as the VM at the other end.

The caller is not to be trusted: it names a network, which the allow-list must have, a guest and numbers, and gets
descriptors. No path and no command is ever its.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from contextlib import closing, suppress
from typing import TYPE_CHECKING

from vmm.errors import BackendError, ConfigError, HostError
from vmm.host.net.join import join_here
from vmm.host.net.link import find_device, netlink
from vmm.host.net_helper.allow import peer_ids, read_allow_list
from vmm.host.net_helper.wire import REQUEST_MAX, parse_request, refusal, send_answer
from vmm.mac import format_mac

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.config import NetConfig
    from vmm.host.net_helper.allow import Caller

#: Of one user, at a time.
CONNECTIONS_MAX = 128
#: What a request may take to come.
_REQUEST_S = 10.0


def next_connection(server: socket.socket) -> socket.socket:
    """Wait for connections, for ever: each is returned in a new process, and never in this one."""
    poll = select.poll()
    poll.register(server, select.POLLIN)
    children: dict[int, tuple[int, int]] = {}  # pid and user, by the descriptor of the process
    while True:
        for fd, _ in poll.poll():
            if fd != server.fileno():
                poll.unregister(fd)
                os.close(fd)
                os.waitpid(children.pop(fd)[0], 0)
                continue
            try:
                connection, _ = server.accept()
            except OSError:  # it is gone again, or there are no descriptors left for it
                time.sleep(0.1)
                continue
            uid, _ = peer_ids(connection)
            if sum(user == uid for _, user in children.values()) >= CONNECTIONS_MAX:
                _refuse(connection, BackendError(f"you have {CONNECTIONS_MAX} taps already", where="pyvmm-net-helper"))
                continue
            pid = os.fork()
            if not pid:
                server.close()  # or connections would wait here for ever once the parent has ended
                for other in children:
                    os.close(other)
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                return connection
            connection.close()
            child = os.pidfd_open(pid)
            children[child] = pid, uid
            poll.register(child, select.POLLIN)


def serve(connection: socket.socket, caller: Caller, allow_list: str, say: Callable[[str], None]) -> None:
    """Do what *caller* asks for over *connection*, and undo it at its end. *say* is told what was decided."""
    with connection:
        connection.settimeout(_REQUEST_S)
        try:
            data = connection.recv(REQUEST_MAX + 1)
        except OSError:  # it says nothing, or is gone
            return
        try:
            net = parse_request(data)
            rules = read_allow_list(allow_list)
            if net is None:
                send_answer(connection, {"networks": rules.networks(caller)})
                return
            reason = rules.check(caller, net.network or net.bridge)
            say(f"{reason}: user {caller.user} joins")
            _lend(connection, net, caller)
        except (ConfigError, HostError) as error:
            say(f"user {caller.user}: {str(error).splitlines()[0]}")
            _refuse(connection, error)
        except OSError as error:
            _refuse(connection, BackendError(f"the host refuses: {error.strerror}", where="pyvmm-net-helper"))


def _lend(connection: socket.socket, net: NetConfig, caller: Caller) -> None:
    """Make the tap of *net* for *caller*, and take it away when *connection* ends."""
    tap, mac = join_here(net, caller.uid)
    index = None
    try:
        with closing(tap):
            if not net.private:  # else it is in a namespace of its own, which ends with it
                index = _passing(tap.name)
            tap.enable(net.queues)
            send_answer(
                connection,
                {"tap": tap.name, "mtu": tap.mtu, "mac": mac and format_mac(mac)},
                [queue.fileno() for queue in tap.queues],
            )
            connection.settimeout(None)
            connection.recv(1)
    finally:
        if index is not None:
            _remove(index)


def _passing(name: str) -> int | None:
    """The number of the device *name*, unless root has made it to stay."""
    with netlink() as routes:
        link = find_device(routes, name)
    stays = link.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA").get_attr("IFLA_TUN_PERSIST")
    return None if stays else link["index"]


def _remove(index: int) -> None:
    """The device goes even if somebody still has its descriptor, or has made it persistent."""
    with netlink() as routes, suppress(OSError):  # it is gone
        routes.link("del", index=index)


def _refuse(connection: socket.socket, error: ConfigError | HostError) -> None:
    with connection, suppress(OSError):
        connection.setblocking(False)
        send_answer(connection, refusal(error))
