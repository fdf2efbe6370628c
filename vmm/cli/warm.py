"""The warm process of `vmm.api.warm`: has all imported that a restored VM may need, and a copy of itself at the door.

Who takes a request is a copy, not this process: so nothing of one VM is left for the next, and the copy is there
before it is asked for. It has a pipe to this process, its *line*: a byte there says that it has taken a request, the
pipe's end that its guest runs, or that it never will.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import struct
import sys
import threading
from contextlib import suppress
from importlib import import_module
from tempfile import TemporaryDirectory

from vmm.api.control import described
from vmm.api.place import LOG
from vmm.api.warm import KEEP, MESSAGE_MAX
from vmm.cache import cache_directory
from vmm.cli.main import ENDING_SIGNALS, OPTIONS, booted, failed
from vmm.cli.options import Options, parse
from vmm.cli.snapshot import restored
from vmm.config import MEMORY_MIN, MachineConfig
from vmm.errors import VmmError
from vmm.kvm.assist.probe import host_kind
from vmm.layout import HIGH_RAM
from vmm.machine import Machine
from vmm.session import Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from vmm.api.place import Place
    from vmm.kvm.assist.probe import HostKind

#: What is imported late elsewhere, and by restored VMs and whoever talks to them.
_LATE = (
    "encodings.ascii",
    "vmm.cli.clone",
    "vmm.api.server",
    "vmm.api.watcher",
    "vmm.host.disk.overlay",
    "vmm.host.lan.port",
    "vmm.host.vsock",
    "vmm.kvm.assist.linux",
    "vmm.kvm.assist.vcpu",
    "vmm.kvm.state",
    "vmm.parts",
    "vmm.pci",
    "vmm.snapshot.file",
    "vmm.virtio.net",
    "vmm.virtio.vsock",
)
_NATIVE = (
    "vmm.native._engine",
    "vmm.native.plain",
    "vmm.virtio.blk_native",
    "vmm.virtio.net_native",
)
#: Who has found nobody at the door for so long has time for a rehearsal.
_IDLE_S = 0.2
#: Another copy is made at the latest so long after one has been taken.
_START_S = 0.02
#: Of what a VM has had to say, in characters: of up to 12 bytes in JSON, and all must fit into a message.
_SAID_MAX = 10 << 10
#: The exit code of a Python that ends by an exception.
_BUG = 1


def main(door_fd: int) -> None:
    """Serve the door *door_fd* until nobody is on the other side."""
    door = socket.socket(fileno=door_fd)
    _import_all()
    snapshot, host = "", None
    with suppress(VmmError, OSError):  # who asks for a VM is to hear it; without a temporary file none is rehearsed
        host = host_kind(cache_directory())
        snapshot = _idle_machine(host)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the copies
    gc.freeze()
    while True:
        waiting, line = os.pipe()
        if os.fork() == 0:
            os.close(waiting)
            _stand_at(door, line, snapshot, host)
        os.close(line)
        if not os.read(waiting, 1):
            return
        # To fork is a millisecond's work, which would be done right now on the processor of who has woken us.
        select.select([waiting], [], [], _START_S)
        os.close(waiting)


def _import_all() -> None:
    for name in _LATE:
        import_module(name)
    with suppress(ImportError):  # it is not built
        for name in _NATIVE:
            import_module(name)


def _stand_at(door: socket.socket, line: int, snapshot: str, host: HostKind | None) -> None:
    """Wait for a request, and be the VM that it asks for; ends the process."""
    try:
        if host and snapshot and not select.select([door], [], [], _IDLE_S)[0]:
            _rehearse(snapshot, host)
            with suppress(VmmError):
                Machine.make_ahead()
        request, fds, _, _ = socket.recv_fds(door, MESSAGE_MAX, 1, socket.MSG_CMSG_CLOEXEC)
        if fds:
            with suppress(BrokenPipeError):  # this is the last copy of a warm process that was killed
                os.write(line, b"\0")
            door.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _Vm(json.loads(request), socket.socket(fileno=fds[0]), host, line).run()
    finally:
        os._exit(0)


def _idle_machine(host: HostKind) -> str:
    """A snapshot of a machine that idles, for rehearsals; its file is gone as soon as this process is."""
    with TemporaryDirectory() as directory:
        kernel, path = os.path.join(directory, "kernel"), os.path.join(directory, "snapshot")
        with open(kernel, "wb") as file:
            file.write(_idle_kernel())
        config = MachineConfig(kernel=kernel, boot="pvh", memory_bytes=MEMORY_MIN, serial="null")
        session = Session(config, host, say=_ignore, trace=_ignore, cache_dir=None)
        machine = Machine.build(session)
        machine.snapshot(path)
        machine.close()
        session.close()
        return f"/proc/self/fd/{os.open(path, os.O_RDONLY | os.O_CLOEXEC)}"


def _idle_kernel() -> bytes:
    """An ELF file that is entered by PVH, and there: no interrupt from the PICs; sti, hlt, and again."""
    code, note = b"\xb0\xff\xe6\x21\xe6\xa1\xfb\xf4\xeb\xfd", struct.pack("<III4sI", 4, 4, 18, b"Xen", HIGH_RAM)
    head = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 2, 62, 1, HIGH_RAM, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    at = len(head) + 2 * 56
    noted = struct.pack("<IIQQQQQQ", 4, 4, at, 0, 0, len(note), len(note), 4)
    load = struct.pack("<IIQQQQQQ", 1, 5, at + len(note), HIGH_RAM, HIGH_RAM, len(code), len(code), 4)
    return head + noted + load + note + code


def _rehearse(snapshot: str, host: HostKind) -> None:
    """Be a VM that goes on from *snapshot*, to its end, where nobody sees it.

    Python's objects, which change as they are used, are this process's own then. Else a thousand pages would have to be
    copied while a guest waits, and all code run for the first time, which takes more than half of its time.
    """
    before = os.environ.get("PYVMM_RUN")
    with suppress(VmmError, OSError), TemporaryDirectory() as directory:
        os.environ["PYVMM_RUN"] = directory
        restored(snapshot, Options({}), lambda _: os.kill(os.getpid(), signal.SIGTERM), host)
    os.environ.pop("PYVMM_RUN", None)
    if before is not None:
        os.environ["PYVMM_RUN"] = before
    for number in ENDING_SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def _ignore(_: str) -> None:
    """What an idle machine has to say."""


class _Vm:
    """The VM that *request* asks for, in this process, and its end of the channel. It is also the process's stderr."""

    def __init__(self, request: dict[str, Any], channel: socket.socket, host: HostKind | None, line: int) -> None:
        self._request, self._channel, self._host, self._line = request, channel, host, line
        self._runs = False
        self._said = ""
        sys.stderr = self

    def run(self) -> None:
        """Run it to its end, and tell."""
        try:
            if "environment" in self._request:
                os.environ.clear()
                os.environ.update(self._request["environment"])
            os.chdir(self._request["directory"])
            if "arguments" in self._request:
                code = booted(parse(self._request["arguments"], OPTIONS), self._started, self._host)
            else:
                options = Options(self._request["options"])
                code = restored(self._request["snapshot"], options, self._started, self._host)
        except VmmError as error:
            if not self._runs:
                self._tell(error=described(error))
                return
            code = failed(error)
        except BaseException:  # noqa: BLE001 - our bug: whoever asked for the VM is to see it
            import traceback

            if not self._runs:
                self._tell(error={"kind": "bug", "message": traceback.format_exc()})
                return
            traceback.print_exc()
            code = _BUG
        self._tell(code=code, said=self._said)

    def write(self, text: str) -> None:
        """Remember what pyvmm says; from when there is a log, it is there too."""
        self._said = (self._said + text)[-_SAID_MAX:]
        os.write(2, text.encode(errors="replace"))

    def flush(self) -> None:
        """Nothing is held back."""

    def _started(self, place: Place) -> None:
        self._runs = True
        process = os.pidfd_open(os.getpid())
        self._tell([process], name=place.name, directory=place.path, pid=os.getpid())
        os.close(process)
        os.close(self._line)
        log = os.open(place.file(LOG), os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        os.dup2(log, 2)
        os.close(log)
        os.write(2, self._said.encode(errors="replace"))
        threading.Thread(target=self._watch, name="owner", daemon=True).start()

    def _watch(self) -> None:
        """End the VM with its owner."""
        said = b""
        with suppress(ConnectionError):  # it went without having read what we told it
            said = self._channel.recv(len(KEEP))
        if said != KEEP:
            os.kill(os.getpid(), signal.SIGTERM)

    def _tell(self, fds: Sequence[int] = (), **message: object) -> None:
        try:
            socket.send_fds(self._channel, [json.dumps(message).encode()], fds)
        except OSError:  # nobody is there any more
            return


if __name__ == "__main__":
    main(int(sys.argv[1]))
