# SPDX-License-Identifier: GPL-2.0-or-later
"""Get a userfaultfd of the target, and leave nothing behind in it.

Two ways. ``direct``: userfaultfd(2), injected; it needs the target to hold
CAP_SYS_PTRACE or vm.unprivileged_userfaultfd=1, because faults of KVM are
raised in the kernel. ``passed``: for a QEMU without privileges; we open
/dev/userfaultfd, whose permission is checked at open, and pass it through a
socket that the target makes and that both of us hold: no name has to be
reachable, so it works across network and mount namespaces.
"""

from __future__ import annotations

import array
import errno
import os
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from uffdballoon.errors import InjectionError, PermissionDeniedError, UnsupportedError
from uffdballoon.host.process import duplicate_fd
from uffdballoon.host.uffd import DEVICE, Userfaultfd
from uffdballoon.target.arch import x86_64 as arch
from uffdballoon.target.injected_calls import CLOEXEC, IOC_NEW, RECVMSG_FLAGS, SOCKET_ARGS
from uffdballoon.target.seccomp import Method, Permits, look_at_filters

if TYPE_CHECKING:
    from collections.abc import Callable

    from uffdballoon.target.injector import Injector, RemoteThread

Choice = Literal["auto", "direct", "passed"]

_REFUSALS = (errno.EPERM, errno.EACCES, errno.ENOSYS)  # of filters and security modules
_CONTROL_HEAD_BYTES = 16  # struct cmsghdr
_CONTROL_BYTES = 24  # with one fd, padded


@dataclass(frozen=True, slots=True)
class Obtained:
    """A userfaultfd of the target, how it was got, and how long that stopped a thread."""

    uffd: Userfaultfd
    method: Method
    stopped_ns: int
    refused_direct: str = ""


def obtain_userfaultfd(
    injector: Injector, choice: Choice = "auto", *, permits: Permits | None = None
) -> Obtained:
    """Get a userfaultfd of the target, not yet initialised.

    ``auto`` tries ``direct`` and, where that is refused, ``passed``; what the target's seccomp
    filters do not permit is not tried. They are looked at here without ``permits``. Raises
    PermissionDeniedError, UnsupportedError, TargetBusyError or TargetGoneError.
    """
    if permits is None:
        permits = look_at_filters(injector.pid, injector.target.pidfd, injector.tids)
    if choice == "auto":
        permits.refuse_unless_any(injector.pid)
    else:
        permits.refuse(choice, injector.pid)
    if choice == "passed":
        return _passed(injector)
    try:
        permits.refuse("direct", injector.pid)
        return _direct(injector)
    except (PermissionDeniedError, UnsupportedError) as error:
        refused = not permits.may("direct") or error.errno in _REFUSALS
        if choice == "direct" or not refused or not permits.may("passed"):
            raise
        obtained = _passed(injector)
        return Obtained(obtained.uffd, "passed", obtained.stopped_ns, refused_direct=str(error))


def _direct(injector: Injector) -> Obtained:
    def inject(remote: RemoteThread) -> Userfaultfd:
        remote_fd = remote.call(arch.USERFAULTFD, CLOEXEC, creates_fd=True)
        _check(remote_fd, "userfaultfd(2)", remote.pid)
        return _take_and_close(remote, injector.target.pidfd, remote_fd)

    injected = injector.run(inject)
    return Obtained(injected.value, "direct", injected.stopped_ns)


def _passed(injector: Injector) -> Obtained:
    device = _open_device(injector.pid)
    try:
        injected = injector.run(_inject_passed(injector.target.pidfd, device))
    finally:
        os.close(device)
    return Obtained(injected.value, "passed", injected.stopped_ns)


def _inject_passed(pidfd: int, device: int) -> Callable[[RemoteThread], Userfaultfd]:
    def inject(remote: RemoteThread) -> Userfaultfd:
        remote_socket = remote.call(
            arch.SOCKET,
            *SOCKET_ARGS,
            creates_fd=True,
        )
        _check(remote_socket, "socket(2)", remote.pid)
        try:
            remote_device = _pass(remote, pidfd, remote_socket, device)
            try:
                remote_fd = remote.call(
                    arch.IOCTL,
                    remote_device,
                    IOC_NEW,
                    CLOEXEC,
                    held=(remote_device, remote_socket),
                    creates_fd=True,
                )
                _check(remote_fd, "ioctl(USERFAULTFDIOC_NEW)", remote.pid)
                return _take_and_close(remote, pidfd, remote_fd, remote_device, remote_socket)
            finally:
                remote.call(arch.CLOSE, remote_device, held=(remote_socket,))
        finally:
            remote.call(arch.CLOSE, remote_socket)

    return inject


def _pass(remote: RemoteThread, pidfd: int, remote_socket: int, device: int) -> int:
    """Send our fd ``device`` to the target; return its number there.

    The socket is bound to a name and both ends are that one socket: a message
    to its own name waits in its own queue.
    """
    name = f"\0uffdballoon.{os.getpid()}.{os.urandom(8).hex()}".encode()
    address = struct.pack("<H", socket.AF_UNIX) + name
    at = remote.scratch(256)
    remote.write(at, address)
    bound = remote.call(arch.BIND, remote_socket, at, len(address), held=(remote_socket,))
    _check(bound, "bind(2)", remote.pid)

    ours = socket.socket(fileno=duplicate_fd(pidfd, remote_socket, pid=remote.pid))
    with ours:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [device]))]
        ours.sendmsg([b"."], rights, 0, name)

    def receive(slot: int) -> tuple[int, int, int]:
        byte, vector, header = at, at + 16, at + 64
        remote.write(vector, struct.pack("<QQ", byte, 1))
        remote.write(
            header,
            struct.pack(
                "<QI4xQQQQI4x", 0, 0, vector, 1, slot - _CONTROL_HEAD_BYTES, _CONTROL_BYTES, 0
            ),
        )
        return remote_socket, header, RECVMSG_FLAGS

    received, remote_device = remote.call_receiving_fd(arch.RECVMSG, receive, held=(remote_socket,))
    _check(received, "recvmsg(2)", remote.pid)
    if remote_device < 0:
        raise InjectionError(
            f"process {remote.pid} did not receive {DEVICE}",
            why="the message came without the fd (RLIMIT_NOFILE of the target reached?)",
            hint="raise the limit of the target with prlimit(1)",
            pid=remote.pid,
        )
    return remote_device


def _take_and_close(
    remote: RemoteThread, pidfd: int, remote_fd: int, *still_held: int
) -> Userfaultfd:
    """Duplicate the target's new userfaultfd, and close it there whatever comes of that."""
    try:
        ours = Userfaultfd(duplicate_fd(pidfd, remote_fd, pid=remote.pid))
    finally:
        remote.call(arch.CLOSE, remote_fd, held=still_held)
    return ours


def _open_device(pid: int) -> int:
    try:
        return os.open(DEVICE, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise UnsupportedError(
            f"cannot pass a userfaultfd to process {pid}",
            why=f"{DEVICE} does not exist",
            hint="a kernel of 6.1 or later with devtmpfs has it; else let the target hold "
            "CAP_SYS_PTRACE, or set vm.unprivileged_userfaultfd=1",
            pid=pid,
            errno=errno.ENOENT,
        ) from error
    except OSError as error:
        raise PermissionDeniedError(
            f"cannot pass a userfaultfd to process {pid}",
            why=f"{DEVICE} cannot be opened",
            hint=f"run as root, or give yourself access to {DEVICE}",
            pid=pid,
            errno=error.errno,
        ) from error


def _check(result: int, call: str, pid: int) -> None:
    if result >= 0:
        return
    number = -result
    if number in (errno.EPERM, errno.EACCES):
        raise PermissionDeniedError(
            f"process {pid} may not call {call}",
            why="it lacks the privilege, or its seccomp filter refuses"
            if number == errno.EPERM
            else "a security module such as SELinux, or its seccomp filter, refuses",
            hint="use `--uffd passed`, or set vm.unprivileged_userfaultfd=1",
            pid=pid,
            errno=number,
        )
    if number == errno.ENOSYS:
        raise UnsupportedError(
            f"process {pid} cannot call {call}",
            why="the kernel, or its seccomp filter, does not have it",
            hint="use `--uffd passed`",
            pid=pid,
            errno=number,
        )
    raise InjectionError(
        f"{call} failed in process {pid}",
        why=os.strerror(number),
        hint="run `uffdballoon doctor --pid PID`",
        pid=pid,
        errno=number,
    )
