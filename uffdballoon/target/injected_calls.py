# SPDX-License-Identifier: GPL-2.0-or-later
"""Every system call that is run in the target, with what is known of its arguments before.

`obtain`, `remote_fds` and the zap of private memory make them; what they pass has to be what is
listed here, since the target's seccomp filters are asked about these.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Final

from uffdballoon.host.process import Advice
from uffdballoon.model.seccomp import Call, Fd
from uffdballoon.target.arch import x86_64 as arch

if TYPE_CHECKING:
    from collections.abc import Mapping

IOC_NEW = 0xAA00  # USERFAULTFD_IOC_NEW, linux/userfaultfd.h
CLOEXEC = os.O_CLOEXEC
SOCKET_ARGS = (
    socket.AF_UNIX,
    socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
    0,
)
RECVMSG_FLAGS = socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
AT_FDCWD = -100  # linux/fcntl.h
OPENING_LOG = (AT_FDCWD, os.O_WRONLY | os.O_APPEND | os.O_NOCTTY)
PIDFD_SELF = -10001  # PIDFD_SELF_THREAD_GROUP, linux/pidfd.h; not on older kernels

_FD = Fd()
_ANY = None
_CLOSE = Call("close(2)", arch.CLOSE, (_FD,))

OBTAINING: Final[Mapping[str, tuple[Call, ...]]] = {
    "direct": (Call("userfaultfd(2)", arch.USERFAULTFD, (CLOEXEC,)), _CLOSE),
    "passed": (
        Call("socket(2)", arch.SOCKET, SOCKET_ARGS),
        Call("bind(2)", arch.BIND, (_FD, _ANY, _FD)),  # the length is as small as an fd
        Call("recvmsg(2)", arch.RECVMSG, (_FD, _ANY, RECVMSG_FLAGS)),
        Call("ioctl(USERFAULTFD_IOC_NEW)", arch.IOCTL, (_FD, IOC_NEW, CLOEXEC)),
        _CLOSE,
    ),
}
REPLACING_FD = (
    Call("dup3(2)", arch.DUP3, (_FD, _FD, 0)),
    Call("openat(2)", arch.OPENAT, (OPENING_LOG[0], _ANY, OPENING_LOG[1])),
    _CLOSE,
)
RESTART = Call("restart_syscall(2)", arch.RESTART_SYSCALL, (_ANY,) * 6)
ALWAYS = (
    # The way back of a thread that is let go in the middle.
    Call("rt_sigreturn(2)", arch.RT_SIGRETURN, (_ANY,) * 6),
    # What the thread slept in goes on by this.
    RESTART,
)
_ADVICE = (Advice.DONTNEED, Advice.DONTNEED_LOCKED)
ZAP_AT_ONCE = tuple(
    Call("process_madvise(2)", arch.PROCESS_MADVISE, (PIDFD_SELF, _ANY, _FD, advice, 0))
    for advice in _ADVICE
)
ZAP_EACH = tuple(
    Call(f"madvise(MADV_{advice.name})", arch.MADVISE, (_ANY, _ANY, advice)) for advice in _ADVICE
)
