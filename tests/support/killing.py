# SPDX-License-Identifier: GPL-2.0-or-later
"""Run something in a child process and SIGKILL it at a random moment."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Callable


def kill_while(work: Callable[[], object], chance: random.Random, *, within_s: float) -> None:
    """Fork a child that does ``work`` over and over; kill it within that time."""
    pid = os.fork()
    if not pid:
        try:
            while True:
                work()
        finally:
            os._exit(1)
    try:
        time.sleep(chance.uniform(0, within_s))
    finally:
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), "the child ended by itself: what it did raised"
