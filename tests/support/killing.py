# SPDX-License-Identifier: GPL-2.0-or-later
"""Run something in a child process and SIGKILL it at a random moment."""

from __future__ import annotations

import functools
import os
import signal
import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

T = TypeVar("T")


def kill_amid(
    work: Callable[[Callable[[], object]], object],
    chance: random.Random,
    *,
    within_s: float,
    look: Callable[[], T] | None = None,
) -> T | None:
    """Fork a child that does ``work``, and kill it within that time after it has begun.

    ``work`` calls what it is given where it begins. With ``look`` the child is stopped at that
    moment, and what it then holds is looked at before it is killed; what ``look`` gave is returned.
    """
    begun, begins = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            work(functools.partial(os.write, begins, b"."))
        finally:
            os._exit(1)
    os.close(begins)
    try:
        assert os.read(begun, 1), "the child ended before it had begun"
        time.sleep(chance.uniform(0, within_s))
        if look is not None:
            os.kill(pid, signal.SIGSTOP)
            _, status = os.waitpid(pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status), "the child ended by itself: what it did raised"
            return look()
        return None
    finally:
        os.close(begun)
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status), "the child ended by itself: what it did raised"
