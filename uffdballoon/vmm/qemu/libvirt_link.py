# SPDX-License-Identifier: GPL-2.0-or-later
"""libvirt as it is asked for the monitor of one domain, which must be one certain process.

Used by the bridge alone: the binding is C that waits, in a thread of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import threading
from typing import TYPE_CHECKING, Any

import libvirt
import libvirt_qemu

from uffdballoon.errors import QmpError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_KEEPALIVE_S = 5
_KEEPALIVES = 3
_HINT = "is libvirtd (virtqemud) running, and is this its domain (virsh list)?"


class Link:
    """A connection to libvirt, made anew by connect(), and a domain of it.

    ``on_event`` is called with a QMP event, and ``on_lost`` when libvirt hung up, both in
    libvirt's own thread, of which there is one a process.
    """

    def __init__(
        self,
        uri: str,
        uuid: str,
        pid: int,
        *,
        on_event: Callable[[dict[str, Any]], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._uri = uri
        self._uuid = uuid
        self._pid = pid
        self._on_event = on_event
        self._on_lost = on_lost
        self._connection: Any = None
        self._domain: Any = None

    def connect(self) -> None:
        """Connect, find the domain and hear its events; raise QmpError.

        It is refused when the domain's QEMU is not the process.
        """
        self.close()
        try:
            self._connection = libvirt.open(self._uri)
            self._connection.setKeepAlive(_KEEPALIVE_S, _KEEPALIVES)
            self._connection.registerCloseCallback(lambda *_: self._on_lost(), None)
            domain = self._connection.lookupByUUIDString(self._uuid)
            self._refuse_another(domain)
            libvirt_qemu.qemuMonitorEventRegister(
                self._connection, domain, None, self._hear, None, 0
            )
            self._domain = domain
        except libvirt.libvirtError as error:
            self.close()
            raise self._error(str(error)) from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of libvirt; a connection that is broken already is no error."""
        connection, self._connection, self._domain = self._connection, None, None
        if connection is not None:
            with contextlib.suppress(libvirt.libvirtError):
                connection.unregisterCloseCallback()
            with contextlib.suppress(libvirt.libvirtError):
                connection.close()

    def ask(self, command: dict[str, Any], files: Sequence[int] = ()) -> dict[str, Any]:
        """Have QEMU run a QMP command without an id; return its answer, a refusal as well.

        ``files`` are fds that go with it. What libvirt refuses is an answer, too:
        {"error": {"class", "desc"}}.
        """
        if self._domain is None:
            return _refusal("libvirt is not connected")
        try:
            text = self._run(json.dumps(command), files)
            answer = json.loads(text)
        except (libvirt.libvirtError, ValueError) as error:
            return _refusal(f"libvirt: {error}")
        if not isinstance(answer, dict):
            return _refusal("libvirt: an answer that is no object")
        answer.pop("id", None)  # of libvirt's own
        return answer

    def _run(self, command: str, files: Sequence[int]) -> str:
        if not files:
            return str(libvirt_qemu.qemuMonitorCommand(self._domain, command, 0))
        text, _ = libvirt_qemu.qemuMonitorCommandWithFiles(self._domain, command, list(files), 0)
        return str(text)

    def _hear(self, *told: Any) -> None:  # noqa: ANN401 - as the binding calls it
        _, _, event, seconds, microseconds, details, _ = told
        message = {
            "timestamp": {"seconds": seconds, "microseconds": microseconds},
            "event": event,
        }
        if details:
            message["data"] = json.loads(details)
        self._on_event(message)

    def _refuse_another(self, domain: Any) -> None:  # noqa: ANN401 - the binding's
        """Raise QmpError unless a file that the domain is given is one that the process has.

        A name, an uuid and a pid file can be another's: one libvirt in a container, say. A file
        that was made a moment ago cannot.
        """
        number = 2**31 + secrets.randbits(30)  # none that libvirt or another client uses
        token = os.memfd_create("uffdballoon-token", os.MFD_CLOEXEC)
        try:
            added, _ = libvirt_qemu.qemuMonitorCommandWithFiles(
                domain, _command("add-fd", {"fdset-id": number}), [token], 0
            )
            try:
                fd = int(json.loads(added)["return"]["fd"])
                has_it = _is_same_file(token, f"/proc/{self._pid}/fd/{fd}")
            finally:
                remove = _command("remove-fd", {"fdset-id": number})
                libvirt_qemu.qemuMonitorCommand(domain, remove, 0)
        except (KeyError, TypeError, ValueError) as error:
            raise self._error("QEMU took no file, by which it would be known") from error
        finally:
            os.close(token)
        if not has_it:
            raise self._error(f"its domain {self._uuid} is another process")

    def _error(self, why: str) -> QmpError:
        return QmpError(
            f"libvirt at {self._uri} does not give the monitor of process {self._pid}",
            why=why,
            hint=_HINT,
            pid=self._pid,
        )


def run_events() -> None:
    """Begin libvirt's thread for events, before anything connects; once a process."""
    libvirt.virEventRegisterDefaultImpl()
    libvirt.registerErrorHandler(lambda *_: None, None)  # else each goes to standard error
    threading.Thread(target=_run_forever, name="libvirt", daemon=True).start()


def _run_forever() -> None:
    while True:
        with contextlib.suppress(libvirt.libvirtError):
            libvirt.virEventRunDefaultImpl()


def _is_same_file(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))  # noqa: PTH116 - a file of /proc/PID/fd
    except OSError:
        return False


def _command(name: str, arguments: dict[str, object]) -> str:
    return json.dumps({"execute": name, "arguments": arguments})


def _refusal(why: str) -> dict[str, Any]:
    return {"error": {"class": "GenericError", "desc": why}}
