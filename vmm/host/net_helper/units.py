"""What sets the helper up: a shell script with systemd's units, and the rule for sudo."""

from __future__ import annotations

import os
import shlex
import stat
import sys

from vmm.errors import BackendError
from vmm.host.net_helper.allow import ALLOW_LIST
from vmm.host.net_helper.client import PROGRAM, SOCKET

_SCRIPT = """\
# Sets up pyvmm-net-helper, with systemd: pyvmm-net-helper --print-units | sudo sh
set -e
cat >/etc/systemd/system/pyvmm-net-helper.socket <<'END'
[Unit]
Description=Networks for the VMs of ordinary users

[Socket]
ListenSequentialPacket={socket}
SocketMode=0666

[Install]
WantedBy=sockets.target
END
cat >/etc/systemd/system/pyvmm-net-helper.service <<'END'
[Unit]
Description=Networks for the VMs of ordinary users

[Service]
ExecStart={program}
# Its children go with their VMs.
KillMode=process
CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_RAW CAP_NET_BIND_SERVICE CAP_SYS_ADMIN CAP_SYS_PTRACE CAP_DAC_OVERRIDE \
CAP_SETUID CAP_SETGID CAP_SETPCAP CAP_KILL
NoNewPrivileges=yes
ProtectHome=read-only
END
mkdir -p {directory}
[ -e {allow_list} ] || cat >{allow_list} <<'END'
# Who may join which network, of pyvmm net or a bridge:
# [[allow]]
# users = ["ann"]
# groups = ["kvm"]
# networks = ["lab"]
END
systemctl daemon-reload
systemctl enable --now pyvmm-net-helper.socket

# Without systemd: run `{program} --listen {socket}` as root, or let sudo start it when it is needed, by
# such a line of `visudo`, with nothing after the two quotes:
# %kvm ALL=(root) NOPASSWD: {program} ""
"""


def setup_script() -> str:
    """The script, for the program that is running.

    Raises:
        BackendError: others than root could change that program.
    """
    program = os.path.realpath(sys.argv[0])
    for path in (program, sys.executable, os.path.dirname(os.path.dirname(os.path.dirname(__file__)))):
        _refuse_others_files(path)
    return _SCRIPT.format(
        program=shlex.quote(program), socket=SOCKET, directory=os.path.dirname(ALLOW_LIST), allow_list=ALLOW_LIST
    )


def _refuse_others_files(path: str) -> None:
    """Raise unless *path* and all above it is root's alone."""
    at = os.path.realpath(path)
    while True:
        found = os.stat(at)
        sticky = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
        if found.st_uid != 0 or (found.st_mode & 0o022 and not sticky):
            raise BackendError(
                f"others than root may change {at}, and so what it does as root",
                where=path,
                fix=f"install pyvmm for all users, such as: sudo python3 -m venv /opt/pyvmm && "
                f"sudo /opt/pyvmm/bin/pip install pyvmm && sudo ln -s /opt/pyvmm/bin/{PROGRAM} /usr/local/sbin/",
            )
        if at == "/":
            return
        at = os.path.dirname(at)
