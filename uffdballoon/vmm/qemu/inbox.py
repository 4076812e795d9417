# SPDX-License-Identifier: GPL-2.0-or-later
"""Events of a monitor that nobody has taken yet, and one fd that tells of them."""

from __future__ import annotations

import contextlib
import os
import select
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket

_MAX_EVENTS = 1024  # a QEMU in bad hands may send any number: the oldest go


class Inbox:
    """Keeps the last events; outlives the connections that they come from.

    Its fd is readable while events wait, or while bytes wait in the socket that is watched. So a
    loop that knows this fd alone misses nothing, whoever read the socket last.
    """

    def __init__(self) -> None:
        self._events: deque[dict[str, Any]] = deque(maxlen=_MAX_EVENTS)
        self._epoll = select.epoll()
        self._news = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._news, select.EPOLLIN)

    def fileno(self) -> int:
        return self._epoll.fileno()

    def watch(self, connected: socket.socket) -> None:
        self._epoll.register(connected, select.EPOLLIN)

    def unwatch(self, connected: socket.socket) -> None:
        """Hear no more of a socket, and have whoever waits look once: it has ended."""
        self._epoll.unregister(connected)
        self._wake()

    def put(self, event: dict[str, Any]) -> None:
        self._events.append(event)
        self._wake()

    def take(self) -> list[dict[str, Any]]:
        """Take what waits, oldest first: {"event", "data", "timestamp"} each."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._news)
        taken = list(self._events)
        self._events.clear()
        return taken

    def close(self) -> None:
        self._epoll.close()
        os.close(self._news)

    def _wake(self) -> None:
        os.eventfd_write(self._news, 1)
