"""An ext4 image of a tree, with mke2fs and debugfs: no root, no loop device, and the same bytes for the same tree."""

from __future__ import annotations

import os
import shutil
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .build import Build
    from .tree import Tree

UUID = "b36f8ad6-0a5c-4d43-9c52-0d6f1c1f0a11"
INODES = 4096
# No journal and no checksums: mounting and writing cost the guest a fraction.  One block group at 128 MiB.
FEATURES = "none,extent,filetype,sparse_super,large_file,dir_index,dir_nlink,extra_isize"
# Else Linux reads all block bitmaps in a thread of its own, seconds after the mount: often in each clone of the guest.
MOUNT_OPTIONS = "no_prefetch_block_bitmaps"


def write_ext4(tree: Tree, path: str, size_bytes: int, build: Build) -> None:
    """Writes an ext4 file system of `size_bytes` with the files of `tree` to `path`, a sparse file."""
    staging = os.path.join(build.work, "staging")
    shutil.rmtree(staging, ignore_errors=True)
    _stage(tree, staging)
    if os.path.exists(path):
        os.unlink(path)
    with open(path, "wb") as image:
        image.truncate(size_bytes)
    environment = {"E2FSPROGS_FAKE_TIME": "1", "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"}
    options = f"hash_seed={UUID},root_owner=0:0,lazy_itable_init=0,nodiscard"
    # fmt: off
    build.run(
        ["mke2fs", "-q", "-F", "-t", "ext4", "-O", FEATURES, "-E", options, "-b", "4096", "-I", "256", "-m", "0",
         "-N", str(INODES), "-U", UUID, "-d", staging, path],
        env=environment,
    )
    # fmt: on
    _finish(tree, path, build, environment)
    shutil.rmtree(staging)


def _stage(tree: Tree, directory: str) -> None:
    """Lays `tree` out on disk, but for device nodes, which only root could make: devtmpfs has them in the guest."""
    os.makedirs(directory)
    for node in tree:
        path = os.path.join(directory, node.path)
        if stat.S_ISDIR(node.mode):
            os.mkdir(path)
        elif stat.S_ISLNK(node.mode):
            os.symlink(node.data, path.encode())
        elif stat.S_ISREG(node.mode):
            with open(path, "wb") as file:
                file.write(node.data)
        if not stat.S_ISCHR(node.mode) and not stat.S_ISLNK(node.mode):
            os.chmod(path, stat.S_IMODE(node.mode))
    for parent, directories, files in os.walk(directory):
        for name in (*directories, *files):
            os.utime(os.path.join(parent, name), (0, 0), follow_symlinks=False)
    os.utime(directory, (0, 0))


def _finish(tree: Tree, image: str, build: Build, environment: dict[str, str]) -> None:
    """What mke2fs cannot do: give all to root, where it copied whoever runs this recipe; and say how to mount it."""
    script = os.path.join(build.work, "finish.debugfs")
    with open(script, "w") as file:
        file.write(f"set_super_value mount_opts {MOUNT_OPTIONS}\n")
        file.writelines(
            f"set_inode_field /{node.path} {field}\n"
            for node in tree
            if not stat.S_ISCHR(node.mode)
            for field in ("uid 0", "gid 0", "atime @0", "ctime @0", "crtime @0")
        )
    build.run(["debugfs", "-w", "-f", script, image], env=environment)
