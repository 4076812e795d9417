# SPDX-License-Identifier: GPL-2.0-or-later
"""Attach and detach under every filter, user and cgroup together: each time it works.

One QEMU for each filter and user, which lives through all of its attaches; the cgroup is changed
while it runs. A QEMU that is frozen is refused by name, and attached to once it is thawed.
"""

from __future__ import annotations

import errno
import itertools
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.filters import answering, build_filtered, packed
from tests.support.freezing import freezing_group
from tests.support.marks import REAL_QEMU
from tests.support.resources import becomes, resources_of, userfaultfd_mappings
from uffdballoon.errors import TargetBusyError
from uffdballoon.lab.confinement import NOT_CONFINED, Confinement
from uffdballoon.lab.qemu import Accel, Memory, Qemu, QemuOptions
from uffdballoon.model.addresses import PAGE_BYTES, GpaRange
from uffdballoon.model.granule import Granule
from uffdballoon.model.seccomp import Action
from uffdballoon.model.touch import Access
from uffdballoon.session import Session, SessionOptions
from uffdballoon.target.arch import x86_64 as arch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from uffdballoon.model.seccomp import Program

pytestmark = REAL_QEMU

OWNED = GpaRange.of(32 << 20, 2 << 20)
GIVEN = GpaRange.of(64 << 20, 1 << 20)
FIRST = GpaRange.of(GIVEN.start + (512 << 10), PAGE_BYTES)
"""Given up before the rest of GIVEN, which is two ranges then: of one no filter is asked."""
SEED = 0xC0FE
KILL = int(Action.KILL_PROCESS)

FILTERS: dict[str, Program | None] = {
    "no-filter": None,
    "sandbox": None,
    "userfaultfd-eperm": answering({arch.USERFAULTFD: Action.ERRNO | errno.EPERM}),
    "userfaultfd-kills": answering({arch.USERFAULTFD: KILL}),
    "process-madvise-kills": answering({arch.PROCESS_MADVISE: KILL}),
}
BARS_DIRECT = ("userfaultfd-eperm", "userfaultfd-kills")
USERS = {
    "root": NOT_CONFINED,
    "libvirt": Confinement(
        uid=65534, no_capabilities=True, no_new_privileges=True, network_namespace=True
    ),
    "namespaces": Confinement(user_namespace=True, private_mounts=True),
}
COMBINATIONS = [
    pytest.param(
        which, user, id=f"{which}-{user}", marks=pytest.mark.needs_kvm if user == "root" else ()
    )
    for which, user in itertools.product(FILTERS, USERS)
]


@pytest.fixture(scope="module")
def filtered() -> Iterator[Path]:
    """Build what runs a command under filters, where any uid may run it."""
    directory = Path(tempfile.mkdtemp(prefix="uffdballoon-matrix-"))
    directory.chmod(0o755)
    yield build_filtered(directory)
    shutil.rmtree(directory)


def _options(which: str, user: str, filtered: Path) -> QemuOptions:
    binary = "qemu-system-x86_64"
    program = FILTERS[which]
    if program is not None:
        rules = filtered.with_name(which)
        rules.write_bytes(packed(program))
        wrapper = filtered.with_name(f"qemu-{which}")
        wrapper.write_text(f'#!/bin/sh\nexec {filtered} run {rules} -- {binary} "$@"\n')
        wrapper.chmod(0o755)
        binary = str(wrapper)
    return QemuOptions(
        accel=Accel.KVM if user == "root" else Accel.TCG,
        memory=Memory(size_bytes=128 << 20),
        sandbox=which == "sandbox",
        confinement=USERS[user],
        binary=binary,
    )


def _fill(qemu: Qemu, span: GpaRange) -> None:
    qemu.guest.fill(span, SEED, stride_bytes=PAGE_BYTES)


def _bad_lines(qemu: Qemu, span: GpaRange) -> int:
    return qemu.guest.verify(span, SEED, stride_bytes=PAGE_BYTES).bad_lines


def _attach(qemu: Qemu, method: str) -> None:
    """Attach, take 1 MiB, let the guest touch it, detach: nothing of it is left."""
    before = resources_of(qemu.pid)
    with Session(SessionOptions(pid=qemu.pid, qmp_path=str(qemu.qmp_path))) as session:
        assert session.uffd_method == method
        for span in (FIRST, GIVEN):
            session.inflate(span, Granule.SMALL, guest_agreed=True)
        assert session.status().ballooned_bytes == GIVEN.size_bytes
        qemu.guest.touch(FIRST, Access.WRITE)
        status = session.status()
        assert status.touches.violations == 1
        assert status.stopped_us.main_thread_stops == 0
    _check_unharmed(qemu)
    assert becomes(qemu.pid, before), (before, resources_of(qemu.pid))
    assert userfaultfd_mappings(qemu.pid) == 0
    _fill(qemu, GIVEN)
    assert _bad_lines(qemu, GIVEN) == 0


def _be_refused(qemu: Qemu) -> None:
    """Try it while it is frozen."""
    before = resources_of(qemu.pid)
    with pytest.raises(TargetBusyError, match="is frozen") as refused:
        Session(SessionOptions(pid=qemu.pid, qmp_path=str(qemu.qmp_path)))
    assert "thaw it" in refused.value.hint
    assert resources_of(qemu.pid) == before


def _check_unharmed(qemu: Qemu) -> None:
    assert qemu.is_running()
    assert qemu.monitor.execute("query-status")["running"]
    qemu.guest.ping()
    assert _bad_lines(qemu, OWNED) == 0


def _attach_in_both_groups(qemu: Qemu, method: str, directory: Path, rounds: int) -> int:
    """Attach as often in the group that it was started in as in one of its own; count them."""
    attaches = 0
    _fill(qemu, OWNED)
    _fill(qemu, GIVEN)
    for version in (1, 2)[:rounds]:
        share = -(-rounds // 2) if version == 1 else rounds // 2
        for _ in range(share):
            _attach(qemu, method)
            attaches += 1
        with freezing_group(version, directory) as group:
            for number in range(share):
                if number % 3 == 0:
                    group.freeze(qemu.pid)
                    _be_refused(qemu)
                    group.thaw()
                    _check_unharmed(qemu)
                _attach(qemu, method)
                attaches += 1
    return attaches


def _method(which: str, user: str) -> str:
    """Return the way that is left: who lacks a privilege here cannot see faults of the kernel."""
    return "direct" if user == "root" and which not in BARS_DIRECT else "passed"


@pytest.fixture
def attach_often(
    filtered: Path, tmp_path: Path, start_qemu: Callable[[QemuOptions], Qemu]
) -> Callable[[str, str, int], int]:
    def attach(which: str, user: str, rounds: int) -> int:
        qemu = start_qemu(_options(which, user, filtered))
        return _attach_in_both_groups(qemu, _method(which, user), tmp_path, rounds)

    return attach


@pytest.mark.parametrize(("which", "user"), COMBINATIONS)
def test_every_combination_is_attached_to(
    which: str, user: str, attach_often: Callable[[str, str, int], int]
) -> None:
    assert attach_often(which, user, 1) == 2


@pytest.mark.campaign
@pytest.mark.parametrize(("which", "user"), COMBINATIONS)
def test_three_hundred_attaches_work_and_leave_nothing(
    which: str, user: str, attach_often: Callable[[str, str, int], int]
) -> None:
    """Of each combination, cgroups included, ten."""
    assert attach_often(which, user, 10) == 20
