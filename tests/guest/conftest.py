"""Real guests: the micro image on a pseudo-terminal, driven as a person would."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pexpect
import pytest

PYVMM = os.path.join(os.path.dirname(sys.executable), "pyvmm")
IMAGES = os.path.join(
    os.environ.get("PYVMM_CACHE")
    or os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "pyvmm"),
    "images",
)
#: What a boot of the micro image may take on a busy machine that interprets ring 0; and a command in the guest.
BOOT_LIMIT_S = 180
COMMAND_LIMIT_S = 60
PROMPT = r"root@\w+:[^ ]*# "


class Image:
    """A guest image as `images/NAME/build` left it."""

    def __init__(self, name: str) -> None:
        self.directory = os.path.join(IMAGES, name)
        with open(os.path.join(self.directory, "manifest.json")) as file:
            self.manifest: dict[str, Any] = json.load(file)
        self.append: str = self.manifest["append"]

    def file(self, name: str) -> str:
        """The path of one of its files."""
        return os.path.join(self.directory, name)

    def copy_root(self, directory: str, name: str = "root.img") -> str:
        """A copy of its root disk that may be written."""
        copy = os.path.join(directory, name)
        subprocess.run(["cp", "--sparse=always", self.file("root.img"), copy], check=True)
        os.chmod(copy, 0o600)
        return copy


class Guest:
    """A guest at its console. `code` is pyvmm's exit code once it has ended."""

    def __init__(self, arguments: list[str], program: str = PYVMM) -> None:
        self.console = pexpect.spawn(
            program, arguments, encoding="utf-8", codec_errors="replace", timeout=COMMAND_LIMIT_S
        )
        self.console.delaybeforesend = None
        self.transcript = ""
        self.console.logfile_read = self

    def write(self, text: str) -> None:
        """pexpect's log of what the guest printed."""
        self.transcript += text

    def flush(self) -> None:
        """Nothing is held back."""

    def wait_for_prompt(self, timeout_s: float = BOOT_LIMIT_S) -> None:
        """Until the shell of a booting guest asks for a command."""
        self.console.expect(PROMPT, timeout=timeout_s)

    def run(self, command: str, timeout_s: float = COMMAND_LIMIT_S, *, check: bool = True) -> str:
        """What *command* prints; it has to succeed unless *check* is false."""
        # The quotes keep the echo of the command line from looking like its output.
        self.console.sendline(f"echo be''gin; {command}; echo en''d=$?")
        self.console.expect(r"begin\r+\n(.*?)end=(\d+)\r+\n", timeout=timeout_s)
        found = self.console.match
        assert isinstance(found, re.Match)
        output, status = found.groups()
        assert not check or status == "0", f"{command!r} ended with {status}: {output}"
        return re.sub(r"\r+\n", "\n", str(output))

    def wait_for_end(self, timeout_s: float = COMMAND_LIMIT_S) -> int:
        """pyvmm's exit code, when it ends by itself."""
        self.console.expect(pexpect.EOF, timeout=timeout_s)
        return self.close()

    def power_off(self) -> int:
        """Let the guest power off; pyvmm's exit code."""
        self.console.sendline("poweroff")
        return self.wait_for_end()

    def close(self) -> int:
        """End pyvmm if it still runs; its exit code."""
        if self.console.isalive():
            self.console.sendcontrol("a")
            self.console.send("x")
            try:
                self.console.expect(pexpect.EOF, timeout=20)
            except pexpect.TIMEOUT:
                self.console.terminate(force=True)
        self.console.close()
        code = self.console.exitstatus
        return -1 if code is None else int(code)


Boot = Callable[..., Guest]


@pytest.fixture(scope="session")
def micro() -> Image:
    return Image("micro")


@pytest.fixture(scope="session")
def debian() -> Image:
    return Image("debian")


@pytest.fixture
def start(micro: Image) -> Iterator[Boot]:
    """Start pyvmm on the micro kernel with more arguments, and end it after the test."""
    guests: list[Guest] = []

    def start(*arguments: str, append: str = "", kernel: str = "vmlinux") -> Guest:
        command_line = f"quiet {append}".strip()
        guests.append(Guest(["--kernel", micro.file(kernel), "--append", command_line, *arguments]))
        return guests[-1]

    yield start
    for guest in guests:
        guest.close()


@pytest.fixture
def boot(start: Boot) -> Boot:
    """Boot the micro kernel with more arguments to its prompt, and end it after the test."""

    def boot(*arguments: str, **more: Any) -> Guest:
        guest = start(*arguments, **more)
        guest.wait_for_prompt()
        return guest

    return boot


@pytest.fixture(scope="module")
def shared_guest(micro: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """One guest, with its root on virtio-blk, for all tests of a module that leave it as it was."""
    disk = micro.copy_root(str(tmp_path_factory.mktemp("shared")))
    guest = Guest(["--kernel", micro.file("vmlinux"), "--append", "quiet", "--disk", disk])
    guest.wait_for_prompt()
    yield guest
    guest.close()


def read_from_image(image: str, path: str) -> bytes:
    """A file of the ext4 file system in *image*."""
    return subprocess.run(["debugfs", "-R", f"cat {path}", image], check=True, capture_output=True).stdout
