# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_ptrace, pytest.mark.needs_userfaultfd]

_CHECKOUT = Path(__file__).parents[2]


# In a mount namespace of its own, where nobody can listen.
_WITHOUT_RUN = 'mount -t tmpfs -o ro none /run && PATH=/nonexistent exec "$@"'


def _run_demo(*prefix: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*prefix, sys.executable, "-m", "examples.demo"],
        cwd=_CHECKOUT,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.alone
@pytest.mark.needs_qemu
@pytest.mark.needs_linux_guest
def test_demo_holds_on_a_real_qemu_and_is_plain_where_nobody_watches() -> None:
    done = _run_demo()
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("A real QEMU with a Linux guest")
    assert "its balloon is followed by the observer" in done.stdout
    assert "0 violations" in done.stdout
    assert "\x1b" not in done.stdout


@pytest.mark.alone
def test_demo_holds_on_a_stand_in_and_says_so_first() -> None:
    done = _run_demo(PATH="/nonexistent")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "stands in for the guest" in done.stdout.splitlines()[0]


def test_demo_fails_where_its_claims_do_not_hold() -> None:
    done = _run_demo("unshare", "--mount", "sh", "-c", _WITHOUT_RUN, "sh")
    assert done.returncode == 1
    assert "FAIL" in done.stdout
