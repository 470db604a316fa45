"""The disk under a folder: what it is, what is free, and whether a file on it may have holes."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from quantplan.hardware.facts import DiskFacts
from quantplan.hardware.tree import HostTree

_NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "virtiofs", "fuse.sshfs", "ceph", "lustre", "glusterfs"}
)
_MEMORY = frozenset({"tmpfs", "ramfs"})
_HOLES = frozenset(
    {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "overlay", "tmpfs", "apfs", "bcachefs", "ntfs3"}
)
_NO_HOLES = frozenset({"vfat", "exfat", "msdos", "hfs", "hfsplus"})
_REFLINKS = frozenset({"btrfs", "bcachefs", "apfs"})
_NO_REFLINKS = frozenset({"ext2", "ext3", "ext4", "tmpfs", "ramfs", "vfat", "exfat", "f2fs"})
_FICLONE = 0x40049409  # linux/fs.h, _IOW(0x94, 9, int)
_PROBE_BYTES = 1024**2


def read_disk(tree: HostTree, folder: Path) -> DiskFacts | None:
    """The disk that holds `folder`, or the nearest folder above it that exists. None where nothing can be asked."""
    there = folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        usage = os.statvfs(there)
        number = there.stat().st_dev
    except OSError:
        return None
    device, filesystem = _mount_of(tree, there, f"{os.major(number)}:{os.minor(number)}")
    block = _block_name(tree, device, f"{os.major(number)}:{os.minor(number)}")
    holes, reflinks = probe_sparse(there) if tree.live else (None, None)
    return DiskFacts(
        path=str(folder),
        device=device,
        filesystem=filesystem,
        kind=kind_of(tree, filesystem, block),
        total_bytes=usage.f_blocks * usage.f_frsize,
        free_bytes=usage.f_bavail * usage.f_frsize,
        holes=holes if holes is not None else _by_name(filesystem, _HOLES, _NO_HOLES),
        reflinks=reflinks if reflinks is not None else _by_name(filesystem, _REFLINKS, _NO_REFLINKS),
        model=tree.text(f"sys/block/{block}/device/model") if block else None,
    )


def _by_name(filesystem: str | None, yes: frozenset[str], no: frozenset[str]) -> bool | None:
    if filesystem in yes:
        return True
    return False if filesystem in no else None


def _mount_of(tree: HostTree, folder: Path, number: str) -> tuple[str | None, str | None]:
    """(source, filesystem) of the mount with that device number, else of the longest mount point above."""
    best: tuple[int, str, str] | None = None
    for line in (tree.text("proc/self/mountinfo") or "").splitlines():
        left, _, right = line.partition(" - ")
        ahead, behind = left.split(), right.split()
        if len(ahead) < 5 or len(behind) < 2:
            continue
        point = ahead[4].replace("\\040", " ")
        above = point == "/" or str(folder) == point or str(folder).startswith(point + "/")
        rank = len(point) + (100_000 if ahead[2] == number else 0)
        if above and (best is None or rank >= best[0]):
            best = (rank, behind[1], behind[0])
    return (best[1], best[2]) if best else (None, None)


def _block_name(tree: HostTree, device: str | None, number: str) -> str | None:
    """The whole disk in /sys/block: of a partition its parent, of a mapped device the device below it."""
    name = (device or "").rsplit("/", 1)[-1]
    disks = tree.names("sys/block")
    for disk in disks:
        parts = (tree.text(f"sys/block/{disk}/dev"), *(tree.text(f"sys/block/{disk}/{part}/dev") for part in
                                                     tree.names(f"sys/block/{disk}", rf"{disk}p?\d+")))  # fmt: skip
        if name == disk or number in parts:
            below = tree.names(f"sys/block/{disk}/slaves")
            return _block_name(tree, below[0], "") if below else disk
        if name.startswith(disk) and name in tree.names(f"sys/block/{disk}", rf"{disk}p?\d+"):
            return disk
    return None


def kind_of(tree: HostTree, filesystem: str | None, block: str | None) -> str | None:
    """nvme | ssd | hdd | virtual | network | memory; a virtual disk's rotational flag says nothing of what is below."""
    if filesystem in _NETWORK:
        return "network"
    if filesystem in _MEMORY:
        return "memory"
    if block is None:
        return None
    if block.startswith("nvme"):
        return "nvme"
    if block.startswith(("vd", "xvd")):
        return "virtual"
    rotational = tree.integer(f"sys/block/{block}/queue/rotational")
    return {0: "ssd", 1: "hdd"}.get(rotational) if rotational is not None else None


def probe_sparse(folder: Path) -> tuple[bool | None, bool | None]:
    """(holes, reflinks) by trying both on files without a name, which vanish; None where it cannot be tried."""
    flag = getattr(os, "O_TMPFILE", None)
    if flag is None:
        return None, None
    with contextlib.ExitStack() as stack:
        try:
            files = [os.open(folder, os.O_RDWR | flag, 0o600) for _ in range(2)]
        except OSError:
            return None, None
        for file in files:
            stack.callback(os.close, file)
        return _try_hole(files[0]), _try_clone(files[0], files[1])


def _try_hole(file: int) -> bool | None:
    try:
        os.ftruncate(file, _PROBE_BYTES)
        return os.fstat(file).st_blocks * 512 < _PROBE_BYTES // 2
    except OSError:
        return None


def _try_clone(source: int, target: int) -> bool | None:
    import errno
    import fcntl

    try:
        os.pwrite(source, b"\0" * 4096, 0)
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        return False if error.errno in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV) else None
    return True
