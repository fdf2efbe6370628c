"""What a plain start imports: not one module more than it uses, and none of those that cost milliseconds.

No clock: which modules are there does not depend on how busy the machine is.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes import kernels

#: Each of these, with what it drags in, costs 1 to 20 ms; the whole start to the guest's first byte is about 25.
FORBIDDEN = {
    "argparse", "ast", "asyncio", "capstone", "concurrent", "contextlib", "copy", "csv", "ctypes.util", "dataclasses",
    "datetime", "difflib", "dis", "email", "getopt", "gettext", "glob", "hashlib", "http", "importlib.metadata",
    "importlib.resources", "inspect", "ipaddress", "json", "locale", "logging", "lz4", "lzma", "multiprocessing",
    "optparse", "pathlib", "pickle", "pyroute2", "queue", "random", "re", "shlex", "shutil", "socket", "ssl",
    "subprocess", "tempfile", "textwrap", "tokenize", "traceback", "typing", "urllib", "uuid", "zlib", "zstandard",
}  # fmt: skip

#: Not needed to enter an ELF kernel without a disk of another format, without a network, and without a crash.
NOT_NEEDED = {
    "vmm.api.client",
    "vmm.api.commands",
    "vmm.api.control",
    "vmm.api.watcher",
    "vmm.boot.bzimage",
    "vmm.boot.cache",
    "vmm.boot.decompress",
    "vmm.boot.longmode",
    "vmm.boot.sniff",
    "vmm.boot.zeropage",
    "vmm.cli.doctor",
    "vmm.cli.stats",
    "vmm.devices.pci",
    "vmm.host.doctor",
    "vmm.host.net",
    "vmm.host.tap",
    "vmm.kvm.assist.vcpu",
    "vmm.kvm.doctor",
    "vmm.kvm.report",
    "vmm.kvm.scratch",
    "vmm.pci",
    "vmm.virtio.net",
}

#: Modules of the standard library and of ours, builtin and frozen ones included.
BUDGET = 117

#: Runs `pyvmm --boot pvh` on a fake KVM, and prints what was imported on the way.
START = """
import sys
before = set(sys.modules)
import vmm.cli.main
from vmm.kvm.assist import probe
probe.host_kind = lambda _: probe.HostKind((), syscall_ok=sys.argv[2] == "complete")
import vmm.machine
import vmm.kvm.system
after_imports = set(sys.modules)
from tests.fakes.kvm import fake_kvm
for name in set(sys.modules) - after_imports:
    del sys.modules[name]  # what the fake alone has imported counts if the start imports it too
with fake_kvm([(0xF4, 7)]):
    seen = set(sys.modules)
    code = vmm.cli.main.main(["--boot", "pvh", "--serial", "null", "--kernel", sys.argv[1]])
print(code)
print(*sorted((after_imports - before) | (set(sys.modules) - seen)))
"""


def imported(directory: Path, host: str) -> set[str]:
    path = directory / "vmlinux"
    path.write_bytes(kernels.vmlinux())
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    done = subprocess.run(
        [sys.executable, "-S", "-c", START, str(path), host],
        capture_output=True, text=True, check=True, cwd=root, env={**os.environ, "PYTHONPATH": root},
    )  # fmt: skip
    code, modules = done.stdout.splitlines()
    assert int(code) == 7 << 1 | 1
    return set(modules.split())


@pytest.mark.parametrize("host", ["complete", "software"])
def test_nothing_slow_is_imported(tmp_path: Path, host: str) -> None:
    modules = imported(tmp_path, host)
    assert not {module for module in modules if module in FORBIDDEN or module.split(".")[0] in FORBIDDEN}


def test_nothing_is_imported_that_the_run_does_not_use(tmp_path: Path) -> None:
    modules = imported(tmp_path, "complete")
    assert not modules & NOT_NEEDED
    assert len(modules) <= BUDGET, sorted(modules)
