# SPDX-License-Identifier: GPL-2.0-or-later
"""A monitor that cannot be had: the reason is named, in one line."""

from __future__ import annotations

import signal
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from tests.support.paused import PausedQemu
from uffdballoon.errors import MonitorBusyError, QmpError
from uffdballoon.vmm.qemu import peer
from uffdballoon.vmm.qemu.monitor import Monitor

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.needs_qemu

_NO_MONITOR = "what listens there is no QMP monitor"


def test_a_human_monitor_is_told_from_one_of_qmp(tmp_path: Path) -> None:
    path = f"{tmp_path}/human"
    with PausedQemu("-monitor", f"unix:{path},server=on,wait=off") as qemu:
        with pytest.raises(QmpError) as refused:
            Monitor.connect(path, pid=qemu.pid)
        assert refused.value.why.startswith(_NO_MONITOR)
        qemu.monitor.execute("query-status")


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"", "it was closed at once"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", _NO_MONITOR),
        (b"\x00\xff\xfe nonsense\r\n", _NO_MONITOR),
        (b"x" * (1 << 20), _NO_MONITOR),
    ],
    ids=["nothing", "text", "bytes", "flood"],
)
def test_what_is_no_monitor_is_named_in_one_line(
    said: bytes, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It is this process's own.
    monkeypatch.setattr(peer, "refuse_unless_served_by", lambda _raw, _path, _pid: None)
    path = f"{tmp_path}/peer"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                try:
                    connection.sendall(said)
                except OSError:
                    return  # it has heard enough

        server = threading.Thread(target=serve)
        server.start()
        with pytest.raises(QmpError) as refused:
            Monitor.connect(path, pid=1)
        server.join()
    assert refused.value.why.startswith(why)
    assert "\n" not in refused.value.why


def test_a_qemu_that_job_control_stopped_is_not_taken_for_a_busy_monitor() -> None:
    with PausedQemu() as qemu:
        qemu.send_signal(signal.SIGSTOP)
        with pytest.raises(MonitorBusyError, match="does not answer") as refused:
            Monitor.connect(str(qemu.qmp_path), pid=qemu.pid, timeout_s=1.0)
        assert "stopped by job control" in refused.value.why
        assert f"kill -CONT {qemu.pid}" in refused.value.hint
        qemu.send_signal(signal.SIGCONT)
        qemu.monitor.execute("query-status")
