"""Files that one guest fetches from another, or from the host."""

from __future__ import annotations

import hashlib
import http.client
from contextlib import closing

from tests.guest.linux import MIB, LinuxGuest, sha256

#: Where ring 0 is interpreted, some 200 kB/s. (Not with nc: it moves a kilobyte a system call.)
TRANSFER_S = 600


def serve(guest: LinuxGuest, size_mib: int) -> None:
    """Have *guest* offer the first *size_mib* of its disk as `data`."""
    guest.run(f"mkdir -p /run/www && dd if=/dev/vda of=/run/www/data bs=1M count={size_mib} iflag=direct", TRANSFER_S)
    guest.run("httpd -h /run/www")


def end_serving(guest: LinuxGuest) -> None:
    """Undo `serve`."""
    guest.run("killall httpd; rm /run/www/data")


def fetch(guest: LinuxGuest, url: str, disk: str, size_mib: int) -> None:
    """Have *guest* fetch *url*: it is the first *size_mib* of *disk*."""
    assert guest.run(f"wget -q -O - {url} | sha256sum", TRANSFER_S).split()[0] == sha256(disk, size_mib * MIB)


def fetch_here(address: str, disk: str, size_mib: int, port: int = 80) -> None:
    """Have the host fetch what is served at *address*: it is the first *size_mib* of *disk*."""
    with closing(http.client.HTTPConnection(address, port, timeout=TRANSFER_S)) as connection:
        connection.request("GET", "/data")
        received = connection.getresponse().read()
    assert hashlib.sha256(received).hexdigest() == sha256(disk, size_mib * MIB)
