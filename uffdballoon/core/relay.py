# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's monitor, read by the C library before its client reads it."""

from __future__ import annotations

import socket
from typing import Any

from uffdballoon._native import ffi, lib
from uffdballoon.host.errnos import check


class Lookout:
    """Sees resets of the guest go by on a connection to its monitor.

    Owns ``monitor``, and drops what comes. Resets are noted in ``memory``, a memfd that holds a
    ledger, unless it is -1.
    """

    def __init__(self, monitor: socket.socket, memory: int = -1) -> None:
        """Start it; raise what check() raises."""
        self._start(monitor, -1, memory)

    def _start(self, monitor: socket.socket, client_fd: int, memory: int) -> None:
        monitor.settimeout(None)
        out = ffi.new("struct uffdb_relay **")
        result = lib.uffdb_relay_create(monitor.fileno(), client_fd, memory, out)
        check(result, "cannot stand between QEMU's monitor and its client")
        self.monitor_fd = monitor.detach()
        self.handle: Any = ffi.gc(out[0], lib.uffdb_relay_destroy)  # None once it is closed

    def note_in(self, memory: int) -> None:
        """Note resets in the memfd of a ledger from now on; before a fault loop watches."""
        check(lib.uffdb_relay_note_in(self.handle, memory), "cannot note resets of the guest")

    def keep(self, *, keeps: bool) -> None:
        """Say whether somebody else holds the connection, too: close() leaves it to them."""
        lib.uffdb_relay_keep(self.handle, keeps)

    def close(self) -> None:
        """End both connections; no fault loop may watch it any more, or run."""
        if self.handle is not None:
            ffi.release(self.handle)
            self.handle = None


class Relay(Lookout):
    """Hands bytes on between a monitor and its client, and sees resets of the guest go by.

    ``client`` is for whoever speaks with the monitor.
    """

    def __init__(self, monitor: socket.socket, memory: int = -1) -> None:
        """Start it; raise what check() raises."""
        ours, self.client = socket.socketpair()
        ours.settimeout(None)
        try:
            self._start(monitor, ours.fileno(), memory)
        except BaseException:
            ours.close()
            self.client.close()
            raise
        ours.detach()
