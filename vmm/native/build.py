"""How the C of this directory becomes `vmm.native._engine`; the package's build runs it (setup.py).

Without liburing's headers the block workers do without io_uring. $PYVMM_NATIVE_CFLAGS adds compiler and linker options
(sanitizers).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile

import cffi

_HERE = os.path.dirname(os.path.relpath(os.path.abspath(__file__)))
#: Headers that Python sees, and the sources.
_API = ("api.h", "blk_api.h", "lan_api.h", "net_api.h", "pages_api.h", "vcpu_api.h")
_SOURCES = (
    *("blk.c", "blk_aio.c", "blk_overlay.c", "blk_request.c", "blk_steps.c"),
    *("lan.c", "lan_pcap.c", "lan_table.c"),
    *("net.c", "net_link.c", "net_rules.c", "net_rx.c", "net_tx.c"),
    *("pages.c", "ring.c", "vcpu.c", "worker.c"),
)


def _has_liburing() -> bool:
    compiler = os.environ.get("CC") or "cc"
    if not shutil.which(compiler.split()[0]):
        return False
    with tempfile.TemporaryDirectory() as scratch:
        source = os.path.join(scratch, "try.c")
        with open(source, "w") as file:
            file.write("#include <liburing.h>\nint main(void) { return IORING_SETUP_SINGLE_ISSUER == 0; }\n")
        command = [*compiler.split(), source, "-o", os.path.join(scratch, "try"), "-luring"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _declarations() -> str:
    """The headers in `_API` as cffi takes them, which knows no preprocessor."""
    lines = ["struct iovec { void *iov_base; size_t iov_len; };\n"]
    for name in _API:
        with open(os.path.join(_HERE, name)) as header:
            lines += [line for line in header if not line.startswith("#")]
    return "".join(lines)


def _builder() -> cffi.FFI:
    extra = os.environ.get("PYVMM_NATIVE_CFLAGS", "").split()
    uring = _has_liburing()
    builder = cffi.FFI()
    builder.cdef(_declarations())
    builder.set_source(
        "vmm.native._engine",
        "".join(f'#include "{name}"\n' for name in _API),
        sources=[os.path.join(_HERE, name) for name in _SOURCES],
        include_dirs=[_HERE],
        depends=[os.path.join(_HERE, name) for name in sorted(os.listdir(_HERE)) if name.endswith(".h")],
        define_macros=[("_GNU_SOURCE", None), *([("HAVE_LIBURING", None)] if uring else [])],
        libraries=["uring"] if uring else [],
        extra_compile_args=["-std=c11", "-O2", "-fvisibility=hidden", *extra],
        extra_link_args=extra,
    )
    return builder


ffibuilder = _builder()

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
