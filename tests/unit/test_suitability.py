# SPDX-License-Identifier: GPL-2.0-or-later
"""What will not hold, told from command lines, fds and answers of the monitor in all spellings.

VFIO, vDPA and encrypted guests cannot be had on a machine without the hardware: what is judged
is pure, and QEMU's and the kernel's spellings are written down here.
"""

from __future__ import annotations

from typing import Any

import pytest

from uffdballoon.errors import QmpError, UnsupportedError, UsageError
from uffdballoon.vmm.qemu.suitability import (
    Evidence,
    devices_of,
    encryption_of,
    judge,
    parse_allowed,
    plugged_devices,
    refuse_unsuitable,
)


def names(*cmdline: str, fds: tuple[str, ...] = ()) -> list[str]:
    """Name what refuses, or is told of, for that command line and these fds."""
    line = ("qemu-system-x86_64", *cmdline)
    evidence = Evidence(drivers=devices_of(line), encrypted=encryption_of(line), fds=fds)
    return [finding.name for finding in judge(evidence)]


@pytest.mark.parametrize(
    "cmdline",
    [
        ("-device", "vfio-pci,host=0000:01:00.0,id=gpu"),
        ("--device", "vfio-pci,host=01:00.0"),
        ("-device", "driver=vfio-pci-nohotplug,sysfsdev=/sys/bus/pci/devices/0000:01:00.0"),
        ("-device", "id=h,driver=vfio-ap,sysfsdev=/sys/devices/vfio_ap/matrix/x"),
        ("-device", '{"driver":"vfio-pci","host":"0000:01:00.0","id":"hostdev0"}'),
        ("-device", ' {"id":"u","driver":"vfio-user-pci","socket":{"path":"/s","type":"unix"}}'),
    ],
)
def test_vfio_devices_refuse(cmdline: tuple[str, ...]) -> None:
    assert names(*cmdline) == ["vfio"]


@pytest.mark.parametrize(
    ("fd", "name"),
    [
        ("/dev/vfio/17", "vfio"),
        ("/dev/vfio/vfio", "vfio"),
        ("/dev/vfio/devices/vfio0", "vfio"),
        ("/dev/iommu", "vfio"),
        ("anon_inode:[vfio-device]", "vfio"),
        ("/dev/vhost-vdpa-0", "vdpa"),
        ("anon_inode:[kvm-gmem]", "encrypted"),
        ("/[kvm-gmem]", "encrypted"),
        ("/dev/sev", "encrypted"),
    ],
)
def test_fds_tell_what_was_plugged_in_later(fd: str, name: str) -> None:
    assert names(fds=("/dev/kvm", "anon_inode:kvm-vm", fd)) == [name]


@pytest.mark.parametrize(
    "cmdline",
    [
        ("-machine", "q35,confidential-guest-support=sev0", "-object", "sev-guest,id=sev0"),
        ("-machine", "pc", "-machine", "memory-encryption=sev0"),
        ("-M", "type=q35,accel=kvm,confidential-guest-support=lsec0"),
        ("-object", "sev-snp-guest,id=s,cbitpos=51"),
        ("-object", "qom-type=tdx-guest,id=t"),
        ("-object", '{"qom-type":"tdx-guest","id":"lsec0","quote-generation-socket":{"type":"x"}}'),
        ("-object", "s390-pv-guest,id=p"),
        ("-machine", "q35,kvm-type=tdx"),
        ("-accel", "kvm,kvm-type=protected"),
    ],
)
def test_encrypted_guests_refuse(cmdline: tuple[str, ...]) -> None:
    assert names(*cmdline) == ["encrypted"]


@pytest.mark.parametrize(
    "cmdline",
    [
        ("-netdev", "vhost-vdpa,vhostdev=/dev/vhost-vdpa-0,id=v"),
        ("-netdev", '{"type":"vhost-vdpa","id":"v"}'),
        ("-device", "vhost-vdpa-device-pci,vhostdev=/dev/vhost-vdpa-0"),
    ],
)
def test_vdpa_devices_refuse(cmdline: tuple[str, ...]) -> None:
    assert names(*cmdline) == ["vdpa"]


@pytest.mark.parametrize(
    "cmdline",
    [
        ("-netdev", "vhost-user,id=n,chardev=c"),
        ("-netdev", "type=vhost-user,id=n,chardev=c"),
        ("-netdev", '{"type":"vhost-user","chardev":"c","id":"n"}'),
        ("-device", "vhost-user-fs-pci,chardev=c,tag=share"),
        ("-device", '{"driver":"vhost-user-blk-pci","chardev":"c"}'),
    ],
)
def test_devices_that_map_the_memory_themselves_are_told_of(cmdline: tuple[str, ...]) -> None:
    (finding,) = judge(Evidence(drivers=devices_of(cmdline)))
    assert (finding.name, finding.refuses) == ("shared-elsewhere", False)
    (finding,) = judge(Evidence(drivers=devices_of(cmdline), sees_fills=False))
    assert finding.refuses, "nothing tells of what they fill"


@pytest.mark.parametrize(
    "cmdline",
    [
        ("-device", "virtio-balloon-pci,id=vfio-pci"),
        ("-device", "virtio-net-pci,netdev=n", "-netdev", "tap,id=n,vhost=on"),
        ("-name", "guest=-device,,vfio-pci"),
        ("-append", "x,,driver=vfio-pci"),
        ("-device", "virtio-serial,id=a,,driver=vfio-pci"),
        ("-object", "memory-backend-ram,id=sev-guest,size=1G"),
        ("-machine", "pc,accel=kvm,kvm-type=auto"),
        ("-device", '{"driver":'),
        ("-device", '{"a":' * 100_000),
        ("-device",),
    ],
)
def test_what_only_looks_like_it_is_nothing(cmdline: tuple[str, ...]) -> None:
    assert names(*cmdline) == []


class FakeAnswers:
    """A monitor that has a device which no command line shows."""

    def execute(self, command: str, arguments: dict[str, object] | None = None) -> Any:  # noqa: ANN401
        raise QmpError(f"{command} {arguments}")

    def hmp(self, line: str) -> str:
        assert line == "info qtree"
        return (
            'bus: main-system-bus\n  type System\n  dev: i440FX-pcihost, id ""\n'
            '    bus: pci.0\n      dev: vfio-pci, id "late"\n        host = "0000:01:00.0"\n'
        )


def test_the_monitor_tells_what_was_plugged_in_later() -> None:
    (finding,) = judge(Evidence(drivers=plugged_devices(FakeAnswers())))
    assert finding.name == "vfio"
    assert "vfio-pci late" in finding.sentence


def test_an_attach_is_refused_until_each_is_allowed_by_its_name() -> None:
    findings = judge(Evidence(drivers={"vfio-pci": "gpu"}, encrypted="sev-guest"))
    with pytest.raises(UnsupportedError) as refused:
        refuse_unsuitable(findings, frozenset(), 7)
    assert "--allow vfio,encrypted" in refused.value.hint
    assert all(finding.sentence in refused.value.why for finding in findings)
    with pytest.raises(UnsupportedError) as refused:
        refuse_unsuitable(findings, parse_allowed("vfio"), 7)
    assert "--allow encrypted" in refused.value.hint
    refuse_unsuitable(findings, parse_allowed("vfio, encrypted"), 7)


@pytest.mark.parametrize("text", ["", "vfio,", "all", "VFIO"])
def test_other_words_allow_nothing(text: str) -> None:
    with pytest.raises(UsageError):
        parse_allowed(text)
