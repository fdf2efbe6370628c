"""A Linux guest on a terminal: typed to and read as its user would."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
from typing import Any, Final

import pexpect

from tests.fakes.host import PYVMM

#: What pyvmm says first on a host whose KVM needs the assist.
SOFTWARE_KVM: Final = "pyvmm: this host's KVM is software"
MIB: Final = 1 << 20
PROMPT: Final = r"root@\w+:\S+# "
#: A boot takes 10 to 30 s on a host whose KVM is software and whose CPUs others use too.
BOOT_S: Final = 180
COMMAND_S: Final = 60


class Image:
    """What an image recipe made: files by their role in its manifest."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        with open(os.path.join(directory, "manifest.json"), encoding="utf-8") as file:
            self.manifest: dict[str, Any] = json.load(file)
        self.initrd = os.path.join(directory, self.manifest["initrd"])
        self.root = os.path.join(directory, self.manifest["root"])

    def kernel(self, name: str = "") -> str:
        """The kernel file *name*, or the image's first."""
        return os.path.join(self.directory, name or self.manifest["kernel"][0])

    def copy_root(self, target: str) -> str:
        """A root disk of the test's own at *target*."""
        subprocess.run(["cp", "--sparse=always", self.root, target], check=True)
        os.chmod(target, 0o644)
        return target


class LinuxGuest:
    """`pyvmm` with *arguments* on a pseudo-terminal, or another *command* that runs it; *before* goes before that."""

    def __init__(self, *arguments: str, before: tuple[str, ...] = (), command: tuple[str, ...] = (PYVMM,)) -> None:
        first, *rest = (*before, *command, *arguments)
        self.console = pexpect.spawn(first, rest, encoding="utf-8", codec_errors="replace", timeout=COMMAND_S)
        self.console.delaybeforesend = None
        self.console.logfile_read = self
        self.transcript = ""

    def write(self, text: str) -> None:
        """pexpect's log of what the guest printed."""
        self.transcript += text

    def flush(self) -> None:
        """Nothing of the log is held back."""

    def wait_for_prompt(self, timeout_s: float = BOOT_S) -> None:
        """Until the shell asks for a command."""
        self.console.expect(PROMPT, timeout=timeout_s)

    def ask_for_prompt(self) -> None:
        """Of a guest that goes on at its prompt, which it has printed before."""
        self.console.sendline()
        self.wait_for_prompt()

    def expect(self, pattern: str, timeout_s: float = COMMAND_S) -> re.Match[str]:
        """Until *pattern* was printed."""
        self.console.expect(pattern, timeout=timeout_s)
        assert isinstance(self.console.match, re.Match)
        return self.console.match

    def run(self, command: str, timeout_s: float = COMMAND_S, *, fails: bool = False) -> str:
        """What *command* prints in the guest; that it *fails*, or does not, is checked."""
        # The quotes keep the echo of what is typed from looking like what is printed.
        self.console.sendline(f"echo be''gin; {command}; echo en''d=$?")
        output, code = self.expect(r"begin\r+\n(.*?)end=(\d+)\r+\n", timeout_s).groups()
        assert bool(int(code)) == fails, f"{command!r} ended with {code}: {output}"
        return re.sub(r"\r+\n", "\n", output).strip("\n")

    def type(self, keys: str) -> None:
        """Press *keys*."""
        self.console.send(keys)

    def interrupt(self) -> None:
        """Press Ctrl-C while a program runs, which has it end."""
        # It says itself that it runs: a child of ash has the terminal a moment before it has SIGINT's default action.
        self.console.sendline("""sh -c "echo sleep''ing; exec sleep 1000" """)
        self.expect(r"sleeping\r")
        self.type("\x03")
        self.wait_for_prompt(20)

    def finish(self, timeout_s: float = COMMAND_S) -> int:
        """The exit code, when it ends by itself; all that it printed is in `transcript`."""
        self.console.expect(pexpect.EOF, timeout=timeout_s)
        self.console.close()
        assert self.console.exitstatus is not None, f"ended by signal {self.console.signalstatus}"
        return int(self.console.exitstatus)

    def power_off(self) -> int:
        """Let the guest power off; the exit code."""
        self.console.sendline("poweroff")
        return self.finish()

    def cut_power(self) -> None:
        """Kill pyvmm, the hard way."""
        self.console.kill(signal.SIGKILL)
        self.console.expect(pexpect.EOF)

    def close(self) -> None:
        """End it, however it is."""
        if self.console.isalive():
            self.console.kill(signal.SIGTERM)
            try:
                self.console.expect(pexpect.EOF, timeout=20)
            except pexpect.TIMEOUT:
                self.console.kill(signal.SIGKILL)
        self.console.close(force=True)


def sha256(path: str, size: int | None = None) -> str:
    """Of the first *size* bytes of a file, as `sha256sum` prints it."""
    with open(path, "rb") as file:
        return hashlib.sha256(file.read() if size is None else file.read(size)).hexdigest()


def make_disk(path: str, size: int) -> str:
    """A disk of *size* bytes in which no two blocks are alike."""
    with open(path, "wb") as file:
        file.writelines(hashlib.shake_128(number.to_bytes(4, "little")).digest(1 << 20) for number in range(size >> 20))
    return path


def file_on_disk(image: str, path: str) -> bytes:
    """The file *path* of the ext4 file system in *image*, read by the host's own tool."""
    command = ["debugfs", "-R", f"cat {shlex.quote(path)}", image]
    return subprocess.run(command, check=True, capture_output=True).stdout


def file_system_is_clean(image: str) -> bool:
    """Whether the host's fsck has nothing to say about the file system in *image*."""
    return subprocess.run(["e2fsck", "-fn", image], capture_output=True, check=False).returncode == 0
