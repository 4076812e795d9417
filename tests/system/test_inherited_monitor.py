# SPDX-License-Identifier: GPL-2.0-or-later
"""A monitor's socket that somebody else made and QEMU was given, as libvirt does it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from uffdballoon.errors import QmpError
from uffdballoon.vmm.qemu.peer import connect_to

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.needs_root

_LOOKS = 300
_PATIENCE_S = 5.0
# A QEMU before 6.0 does not listen again, and closes its clients' connections at any moment.
_BUSY = """
import os
os.write(1, b".")
while True:
    for fd in [os.open("/dev/null", os.O_RDONLY) for _ in range(64)]:
        os.close(fd)
"""


def test_whoever_holds_the_socket_is_known_while_it_closes_other_files(tmp_path: Path) -> None:
    path = str(tmp_path / "qmp")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(2 * _LOOKS)
        holder = subprocess.Popen(
            [sys.executable, "-c", _BUSY], pass_fds=[listener.fileno()], stdout=subprocess.PIPE
        )
        with holder:
            try:
                assert holder.stdout is not None
                assert os.read(holder.stdout.fileno(), 1)
                for _ in range(_LOOKS):
                    connect_to(path, holder.pid, _PATIENCE_S).close()
                with pytest.raises(QmpError, match="is not that of process"):
                    connect_to(path, 1, _PATIENCE_S)
            finally:
                holder.kill()
