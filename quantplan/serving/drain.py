"""Ending a server without breaking what it is writing: no new connections, then the slots, then the stop.

llama-server itself cuts every stream at SIGTERM. Its listening socket is borrowed (pidfd_getfd(2)) and given a filter
that drops what arrives (socket(7), SO_ATTACH_FILTER): connections that stand go on, new ones are not accepted. They are
refused as soon as the server has ended.
"""

from __future__ import annotations

import ctypes
import os
import platform
import socket
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

from quantplan.hardware.processes import Listener, listeners

_PIDFD_GETFD = 438  # linux: the same number on every architecture since 5.6
_SO_ATTACH_FILTER = 26  # asm-generic/socket.h
_BPF_RET = 0x06  # linux/bpf_common.h: BPF_RET | BPF_K; returning 0 bytes drops the packet


def stop_accepting(pid: int, port: int) -> str | None:
    """Drops new connections to the process's listening sockets; None when done, else why it could not be."""
    if platform.system() != "Linux":
        return f"needs Linux, this is {platform.system()}"
    inodes = {one.inode for one in listeners(port) if one.pid == pid}
    if not inodes:
        return "its listening socket was not found"
    try:
        for handle in _handles(pid, inodes):
            _drop_arrivals(pid, handle)
    except OSError as error:
        return f"the kernel does not allow it ({error.strerror or error})"
    return None


def _handles(pid: int, inodes: set[int]) -> list[int]:
    names = {f"socket:[{inode}]" for inode in inodes}
    folder = Path(f"/proc/{pid}/fd")
    return [int(entry.name) for entry in folder.iterdir() if os.readlink(entry) in names]  # noqa: PTH115 - no file


def _drop_arrivals(pid: int, handle: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    process = os.pidfd_open(pid)
    try:
        borrowed = libc.syscall(_PIDFD_GETFD, process, handle, 0)
        if borrowed < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(process)
    program = ctypes.create_string_buffer(struct.pack("HBBI", _BPF_RET, 0, 0, 0))
    with socket.socket(fileno=borrowed) as listening:
        listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HL", 1, ctypes.addressof(program)))


def wait_quiet(
    busy: Callable[[], Sequence[int]], *, ended: Callable[[], bool], limit_s: float, quiet_s: float,
    clock: Callable[[], float], sleep: Callable[[float], None],
) -> bool:  # fmt: skip
    """True once no slot has been busy for `quiet_s` (a waiting request would have taken a free slot by then) or the
    server has ended; False when `limit_s` is over first."""
    started = quiet_since = clock()
    while clock() - started < limit_s:
        if ended():
            return True
        if busy():
            quiet_since = clock()
        elif clock() - quiet_since >= quiet_s:
            return True
        sleep(0.05)
    return False


def is_public(found: Sequence[Listener]) -> bool:
    """Whether anybody but this machine can reach one of the sockets."""
    return any(not one.is_loopback for one in found)
