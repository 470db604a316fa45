"""Processes of this host, as /proc shows them: who listens on a port, what a process was told and has open."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from quantplan.hardware.tree import HostTree

_DELETED = " (deleted)"  # fs/d_path.c: what a mapped file's name ends in when it has been unlinked or replaced
_LISTEN = "0A"  # include/net/tcp_states.h: TCP_LISTEN


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """A listening socket. `pid` is None where its owner's files may not be read (another user's)."""

    address: str
    port: int
    inode: int
    pid: int | None

    @property
    def is_loopback(self) -> bool:
        return ipaddress.ip_address(self.address).is_loopback


@dataclass(frozen=True, slots=True, kw_only=True)
class MappedFile:
    """A file that a process has mapped. `where` is its entry in map_files, which opens the very inode even when the
    name has been given to another file or to none (`replaced`)."""

    path: str
    inode: int
    where: Path
    replaced: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryHolder:
    """A process and the memory it holds: resident bytes on the host, or bytes of a card."""

    pid: int
    name: str
    held_bytes: int


def listeners(port: int, *, root: Path = Path("/")) -> tuple[Listener, ...]:
    """Everybody who listens on a TCP port of this host (of this network namespace)."""
    tree = HostTree(root)
    found = [entry for table in ("tcp", "tcp6") for entry in _listening(tree.text(f"proc/net/{table}") or "", port)]
    owners = _owners({inode for _, inode in found}, root) if found else {}
    return tuple(Listener(address=address, port=port, inode=inode, pid=owners.get(inode)) for address, inode in found)


def _listening(table: str, port: int) -> Iterator[tuple[str, int]]:
    for line in table.splitlines()[1:]:
        words = line.split()
        address, _, number = words[1].partition(":")
        if words[3] == _LISTEN and int(number, 16) == port:
            yield _address(address), int(words[9])


def _address(text: str) -> str:
    """An address of /proc/net/tcp: words of 32 bits in the host's order (little endian on every host we know)."""
    raw = b"".join(bytes.fromhex(text[i : i + 8])[::-1] for i in range(0, len(text), 8))
    address = ipaddress.ip_address(raw)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def _owners(inodes: set[int], root: Path) -> dict[int, int]:
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    found: dict[int, int] = {}
    for pid in pids(root=root):
        for link in _links(root / "proc" / str(pid) / "fd"):
            if link in wanted:
                found.setdefault(wanted[link], pid)
    return found


def _links(folder: Path) -> Iterator[str]:
    try:
        names = os.listdir(folder)  # noqa: PTH208 - a hundred thousand of them need no Path each
    except OSError:
        return
    for name in names:
        try:
            yield os.readlink(folder / name)  # noqa: PTH115
        except OSError:
            continue


def pids(*, root: Path = Path("/")) -> tuple[int, ...]:
    """All process ids, in order."""
    return tuple(int(name) for name in HostTree(root).names("proc", r"\d+"))


def argv_of(pid: int, *, root: Path = Path("/")) -> tuple[str, ...] | None:
    """A process's command line; None when it may not be read or is gone, empty for a kernel thread."""
    raw = _bytes(root, pid, "cmdline")
    return None if raw is None else tuple(word.decode("utf-8", "replace") for word in raw.split(b"\0")[:-1])


def environment_of(pid: int, *, root: Path = Path("/")) -> dict[str, str] | None:
    """A process's environment as it was started; None when it may not be read (another user's)."""
    raw = _bytes(root, pid, "environ")
    if raw is None:
        return None
    words = (word.decode("utf-8", "replace").partition("=") for word in raw.split(b"\0") if word)
    return {name: value for name, _, value in words}


def started_ticks(pid: int, *, root: Path = Path("/")) -> int | None:
    """When a process started, in clock ticks since boot: with the pid it names a process for good."""
    stat = _bytes(root, pid, "stat")
    if stat is None:
        return None
    return int(stat.rsplit(b")", 1)[1].split()[19])  # proc(5): field 22, counted from the one after the name


def program_of(pid: int) -> Path | None:
    """The file that a process runs; None when it may not be read."""
    try:
        return Path(os.readlink(f"/proc/{pid}/exe"))  # noqa: PTH115 - a name such as `x (deleted)` is no path to resolve
    except OSError:
        return None


def children_of(pid: int, *, root: Path = Path("/")) -> tuple[int, ...]:
    """A process and all its descendants, itself first."""
    parents: dict[int, list[int]] = {}
    for other in pids(root=root):
        stat = _bytes(root, other, "stat")
        if stat:
            parents.setdefault(int(stat.rsplit(b")", 1)[1].split()[1]), []).append(other)
    found = [pid]
    for one in found:
        found += parents.get(one, [])
    return tuple(found)


def mapped_files(pid: int, *, suffix: str = "", root: Path = Path("/")) -> tuple[MappedFile, ...] | None:
    """The files that a process has mapped whose name ends so; None when it may not be read."""
    raw = _bytes(root, pid, "maps")
    if raw is None:
        return None
    found: dict[int, MappedFile] = {}
    for line in raw.decode("utf-8", "replace").splitlines():
        words = line.split(maxsplit=5)
        if len(words) < 6 or not words[5].startswith("/"):
            continue
        path = words[5].removesuffix(_DELETED)
        if path.endswith(suffix) and int(words[4]) not in found:
            where = root / "proc" / str(pid) / "map_files" / words[0]
            found[int(words[4])] = MappedFile(
                path=path, inode=int(words[4]), where=where, replaced=words[5].endswith(_DELETED)
            )
    return tuple(found.values())


def anonymous_bytes(pid: int, *, root: Path = Path("/")) -> int | None:
    """Resident memory of a process that no file stands for."""
    told = HostTree(root).pairs(f"proc/{pid}/status")
    parts = [told.get(key, "").split() for key in ("RssAnon", "RssShmem")]
    return sum(int(part[0]) * 1024 for part in parts) if all(parts) else None


def largest_holders(count: int = 3, *, root: Path = Path("/")) -> tuple[MemoryHolder, ...]:
    """The processes with the most resident memory, the largest first."""
    tree, found = HostTree(root), []
    for pid in pids(root=root):
        told = tree.pairs(f"proc/{pid}/status")
        size = told.get("VmRSS", "").split()
        if size:
            found.append(MemoryHolder(pid=pid, name=told.get("Name", "?"), held_bytes=int(size[0]) * 1024))
    return tuple(sorted(found, key=lambda holder: -holder.held_bytes)[:count])


def _bytes(root: Path, pid: int, name: str) -> bytes | None:
    try:
        return (root / "proc" / str(pid) / name).read_bytes()
    except OSError:
        return None
