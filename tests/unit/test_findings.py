# SPDX-License-Identifier: GPL-2.0-or-later
"""What will not hold, by everything that there is to be judged at once."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.guest_ram import ram_block
from tests.support.monitor import WrittenMonitor
from uffdballoon.errors import QmpError
from uffdballoon.vmm.qemu import suitability
from uffdballoon.vmm.qemu.suitability import (
    ALLOWABLE,
    Evidence,
    _locked_ram,
    _told_encryption,
    devices_of,
    encryption_of,
    judge,
    plugged_devices,
)

EVERYTHING = Evidence(
    drivers={"vfio-pci": "gpu", "vhost-vdpa": "n", "vhost-user": "fs"},
    fds=("/dev/vfio/17", "/dev/sev"),
    encrypted="sev-guest",
    mappers=(8, 9),
    owners=(10,),
    locked_bytes=3 << 20,
)


def test_a_guest_like_any_other_has_no_findings() -> None:
    assert judge(Evidence(drivers={"virtio-net-pci": "n"}, fds=("/dev/kvm", "socket:[1]"))) == []


def test_the_gravest_comes_first_and_each_once() -> None:
    found = judge(EVERYTHING)
    assert [finding.name for finding in found] == [
        *("vfio", "vdpa", "encrypted", "shared-elsewhere", "locked"),
    ]
    assert [finding.refuses for finding in found] == [True, True, True, True, False]


@given(
    vfio=st.booleans(),
    encrypted=st.booleans(),
    mappers=st.booleans(),
    owners=st.booleans(),
    locked=st.booleans(),
    sees_fills=st.booleans(),
)
def test_what_refuses_can_be_allowed_by_its_name(**there: bool) -> None:
    evidence = Evidence(
        drivers={"vfio-pci": ""} if there["vfio"] else {},
        encrypted="tdx-guest" if there["encrypted"] else "",
        mappers=(8,) if there["mappers"] else (),
        owners=(9,) if there["owners"] else (),
        locked_bytes=1 << 30 if there["locked"] else 0,
        sees_fills=there["sees_fills"],
    )
    found = {finding.name: finding for finding in judge(evidence)}
    assert {finding.name for finding in found.values() if finding.refuses} <= set(ALLOWABLE)
    shared = found.get("shared-elsewhere")
    assert (shared is not None) is (there["mappers"] or there["owners"])
    if shared is not None:
        assert shared.refuses is (there["owners"] or not there["sees_fills"])


def test_who_owns_the_memory_as_well_is_named_before_who_uses_it() -> None:
    shared = judge(EVERYTHING)[3].sentence
    assert shared.index("process 10") < shared.index("vhost-user fs, process 8, process 9")


def test_a_kernel_without_minor_faults_says_what_it_misses() -> None:
    (finding,) = judge(Evidence(mappers=(8,), sees_fills=False))
    assert "no minor faults" in finding.sentence
    (finding,) = judge(replace(Evidence(mappers=(8,)), sees_fills=True))
    assert "judged when the guest touches it" in finding.sentence


def test_locked_memory_is_told_with_its_size() -> None:
    (finding,) = judge(Evidence(locked_bytes=5 << 30))
    assert finding.sentence.startswith("5120 MiB of QEMU's memory are locked")


@pytest.mark.parametrize(
    ("locked_bytes", "told_bytes"),
    [(0, 0), (64 << 10, 0), ((32 << 20) - 1, 0), (32 << 20, 32 << 20), (1 << 30, 1 << 30)],
)
def test_only_all_of_ram_counts_as_locked(
    locked_bytes: int, told_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suitability, "locked_bytes_of", lambda _pid: locked_bytes)
    assert _locked_ram(7, [ram_block(huge_pages=16)]) == told_bytes


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ({}, ""),
        ({"query-sev": {"enabled": False}}, ""),
        ({"query-sev": {"enabled": True}}, "query-sev says so"),
        ({"query-sev": []}, ""),
        ({"qom-get": ""}, ""),
        ({"qom-get": "/objects/tdx0"}, "confidential-guest-support=/objects/tdx0"),
        ({"query-sev": QmpError("off"), "qom-get": "x"}, "confidential-guest-support=x"),
    ],
)
def test_the_monitor_tells_of_encryption(answers: dict[str, object], told: str) -> None:
    assert _told_encryption(WrittenMonitor(answers)) == told


def test_a_monitor_without_a_tree_of_devices_tells_of_none() -> None:
    assert plugged_devices(WrittenMonitor({})) == {}
    assert plugged_devices(WrittenMonitor({"info qtree": "bus: x\n  dev: \n dev: a, id b\n"})) == {}


@pytest.mark.parametrize(
    ("cmdline", "devices"),
    [
        (("-nic", "tap,id=n"), {"tap": "n"}),
        (("-net", "nic"), {"nic": ""}),
        (("-netdev", "vhost-vdpa,id=v", "-device", "e1000"), {"vhost-vdpa": "v", "e1000": ""}),
        (("-device", "a,id=1", "-device", "a,id=2"), {"a": "2"}),
        (("-device", ""), {"": ""}),
        (("device", "vfio-pci"), {}),
    ],
)
def test_devices_of_a_command_line(cmdline: tuple[str, ...], devices: dict[str, str]) -> None:
    assert devices_of(cmdline) == devices


@pytest.mark.parametrize(
    ("cmdline", "told"),
    [
        (("-machine", "q35,memory-encryption=sev0"), "memory-encryption=sev0"),
        (("-M", "confidential-guest-support=tdx0"), "confidential-guest-support=tdx0"),
        (("-accel", "kvm,kvm-type=protected"), "kvm-type=protected"),
        (("-object", '{"qom-type":"sev-snp-guest","id":"a"}'), "sev-snp-guest"),
        (("-object", "sev-guest-of-mine,id=a"), ""),
        (("-machine", "q35,memory-encryption="), ""),
    ],
)
def test_encryption_of_a_command_line(cmdline: tuple[str, ...], told: str) -> None:
    assert encryption_of(cmdline) == told
