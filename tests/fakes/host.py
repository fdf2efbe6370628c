"""The host as other users see it, and the command under test."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.conftest import required

PYVMM = os.path.join(os.path.dirname(sys.executable), "pyvmm")
#: To put before a command: it runs as an ordinary user without any privilege.
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs")


def private_dev(*commands: str) -> tuple[str, ...]:
    """To put before a command: it sees a /dev of its own, empty but for /dev/null and what *commands* make."""
    script = ["mount -t tmpfs -o mode=755 dev /dev", "mknod -m 666 /dev/null c 1 3", *commands, 'exec "$@"']
    return ("unshare", "--mount", "sh", "-ec", "\n".join(script), "sh")


KVM_FOR_ROOT_ONLY = private_dev("mknod -m 600 /dev/kvm c 10 232")
KVM_FOR_ALL = private_dev("mknod -m 666 /dev/kvm c 10 232")


@contextmanager
def public_directory() -> Iterator[str]:
    """A directory that an ordinary user can read; the test is skipped where they cannot run pyvmm at all.

    Their VMs are where an ordinary user's are.
    """
    if subprocess.run([*NOBODY, PYVMM, "--version"], capture_output=True, check=False).returncode:
        (pytest.fail if required() else pytest.skip)(f"ordinary users may not run {PYVMM}")
    directory = tempfile.mkdtemp(prefix="pyvmm-test-")
    runtime = os.environ.pop("PYVMM_RUN", "")
    try:
        os.chmod(directory, 0o755)
        yield directory
    finally:
        os.environ["PYVMM_RUN"] = runtime
        shutil.rmtree(directory)
        shutil.rmtree("/tmp/pyvmm-65534", ignore_errors=True)
