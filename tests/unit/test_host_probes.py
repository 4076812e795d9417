# SPDX-License-Identifier: GPL-2.0-or-later
"""The verdicts of probes, from answers of a host that is made up."""

from __future__ import annotations

import errno
import os
import platform
from typing import TYPE_CHECKING, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uffdballoon.errors import UffdballoonError
from uffdballoon.host import probes
from uffdballoon.host.jobs import ATTACH, INSPECT, JOBS
from uffdballoon.host.privileges import NEEDS, Capability, capability_names
from uffdballoon.host.uffd import Feature, Userfaultfd

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_ALL = frozenset(Capability)


@pytest.fixture
def holding(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make believe that these capabilities are held, and what yama says."""

    def hold(*held: Capability, scope: int | None = 0, device: bool = False) -> None:
        monkeypatch.setattr(probes, "held_capabilities", lambda: frozenset(held))
        monkeypatch.setattr(probes, "may_use_userfaultfd", lambda: device)
        monkeypatch.setattr(
            probes, "_read_number", lambda path: scope if "yama" in path else pytest.fail(path)
        )

    return hold


@pytest.mark.parametrize(
    ("held", "scope", "ok"),
    [
        ((Capability.SYS_PTRACE,), 0, True),
        ((Capability.SYS_PTRACE,), 2, True),
        ((Capability.SYS_PTRACE,), 3, False),
        ((), 0, False),
        ((Capability.SYS_PTRACE,), None, True),
    ],
)
def test_tracing_takes_a_capability_and_a_yama_that_lets_it(
    held: tuple[Capability, ...], scope: int | None, holding: Callable[..., None], *, ok: bool
) -> None:
    holding(*held, scope=scope)
    probe = probes._ptrace()
    assert (probe.ok, probe.errno) == (ok, None if ok else errno.EPERM)
    assert ("until the next boot" in probe.fix) is bool(held)


@pytest.mark.parametrize(
    ("held", "scope", "device", "lacks"),
    [
        ((), 0, True, []),
        ((), 1, True, ["CAP_SYS_PTRACE"]),
        ((), 0, False, ["/dev/userfaultfd"]),
        ((), 2, False, ["CAP_SYS_PTRACE", "/dev/userfaultfd"]),
        ((Capability.SYS_PTRACE,), 1, True, []),
    ],
)
def test_ones_own_qemu_takes_a_device_and_a_yama_that_lets_it(
    held: tuple[Capability, ...],
    scope: int,
    lacks: list[str],
    holding: Callable[..., None],
    *,
    device: bool,
) -> None:
    holding(*held, scope=scope, device=device)
    probe = probes._attach_to_own()
    assert probe.ok is not bool(lacks)
    assert all(word in probe.detail and word in probe.fix for word in lacks)


def test_with_everything_each_job_can_be_done(holding: Callable[..., None]) -> None:
    holding(*_ALL)
    assert all(probe.ok for probe in probes.probe_jobs() + probes.probe_capabilities())
    holding(*_ALL, scope=3)
    assert [p.name for p in probes.probe_jobs() if p.ok] == [probes.job_name(INSPECT)]


def test_with_nothing_each_job_says_what_it_lacks(holding: Callable[..., None]) -> None:
    holding()
    jobs = probes.probe_jobs()
    assert not any(probe.ok for probe in jobs)
    assert all(probe.detail.startswith("lacks CAP_") for probe in jobs)
    assert [probe.name for probe in probes.probe_capabilities()] == [
        str(need.capability) for need in NEEDS
    ]


@given(st.frozensets(st.sampled_from(Capability)))
def test_what_lacks_nothing_lacks_nothing_with_more(held: frozenset[Capability]) -> None:
    for job in JOBS:
        if not job.lacking(held):
            assert not job.lacking(held | {Capability.SYS_ADMIN})
            assert Capability.SYS_PTRACE in held


def test_either_of_two_capabilities_does() -> None:
    assert ATTACH.lacking([Capability.SYS_PTRACE, Capability.DAC_OVERRIDE]) == []
    assert ATTACH.lacking([Capability.SYS_PTRACE]) == ["CAP_DAC_READ_SEARCH or CAP_DAC_OVERRIDE"]


def test_capabilities_of_a_mask_have_their_names() -> None:
    assert capability_names(0) == []
    assert capability_names(0b11) == ["CAP_CHOWN", "CAP_DAC_OVERRIDE"]
    assert capability_names(1 << 40 | 1 << 63) == ["CAP_CHECKPOINT_RESTORE", "CAP_63"]
    assert [str(c) for c in Capability] == [capability_names(1 << c)[0] for c in Capability]


class _Uffd:
    """A userfaultfd that knows some features."""

    def __init__(self, known: Feature) -> None:
        self._known = known

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def api(self, _wanted: Feature) -> Feature:
        return self._known


def _refuse(number: int | None) -> Callable[[], _Uffd]:
    def opener() -> _Uffd:
        raise UffdballoonError("no", errno=number)

    return opener


@pytest.mark.parametrize(
    ("number", "fix"),
    [
        (errno.EPERM, "run as root"),
        (errno.EACCES, "run as root"),
        (errno.ENOSYS, "it takes a kernel"),
        (errno.ENOENT, "it takes a kernel"),
        (None, "it takes a kernel"),
    ],
)
def test_what_is_denied_and_what_is_not_there_have_other_remedies(
    number: int | None, fix: str
) -> None:
    probe = probes._try_open("x", _refuse(number), "a kernel")  # type: ignore[arg-type]
    assert (probe.ok, probe.errno) == (False, number)
    assert probe.fix.startswith(fix)
    assert probe.detail == (os.strerror(number) if number else "no")


def test_features_that_are_lacking_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    every = Feature((1 << 17) - 1)
    known = every & ~Feature.WP_HUGETLBFS_SHMEM
    monkeypatch.setattr(Userfaultfd, "open", _refuse(errno.EPERM))
    monkeypatch.setattr(Userfaultfd, "open_through_device", lambda: _Uffd(known))
    probe = probes._features()
    assert (probe.ok, probe.detail) == (False, "lacks WP_HUGETLBFS_SHMEM")
    monkeypatch.setattr(Userfaultfd, "open_through_device", lambda: _Uffd(every))
    assert probes._features().ok
    monkeypatch.setattr(Userfaultfd, "open_through_device", _refuse(errno.ENOENT))
    assert probes._features().detail == "no userfaultfd to ask"


def test_minor_faults_that_are_lacking_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "query_features", lambda: Feature.MINOR_HUGETLBFS)
    assert probes._minor_faults().detail == "lacks MINOR_SHMEM"
    monkeypatch.setattr(probes, "query_features", _refuse(errno.EPERM))
    assert probes._minor_faults().detail == "no userfaultfd to ask"


@pytest.mark.parametrize(("limit", "ok"), [(65530, True), (65529, False), (0, False)])
def test_mappings_are_enough_or_the_sysctl_is_named(
    limit: int, monkeypatch: pytest.MonkeyPatch, *, ok: bool
) -> None:
    monkeypatch.setattr(probes, "_read_number", lambda _path: limit or None)
    probe = probes._map_count()
    assert (probe.ok, probe.detail) == (ok, str(limit))
    assert "vm.max_map_count=65530" in probe.fix


def test_an_architecture_that_is_not_known_is_essential(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    probe = probes._architecture()
    assert (probe.ok, probe.essential, probe.detail) == (False, True, "riscv64")


@pytest.mark.parametrize("text", ["", "x", "1 2", "\n"])
def test_a_number_that_is_none_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "n").write_text(text)
    assert probes._read_number(str(tmp_path / "n")) is None
    assert probes._read_number(str(tmp_path / "lacking")) is None
    (tmp_path / "n").write_text(" 65530\n")
    assert probes._read_number(str(tmp_path / "n")) == 65530
