# SPDX-License-Identifier: GPL-2.0-or-later
"""Without a monitor guest RAM is where the monitor says, or it is a refusal."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.support.chrooted import write_chrooted_qemu
from tests.support.paused import PausedQemu
from uffdballoon.errors import LabError, UnsupportedError
from uffdballoon.host.targetfiles import root_of
from uffdballoon.lab.qemu import QemuOptions
from uffdballoon.model.ram import Backing
from uffdballoon.session import look_at
from uffdballoon.target.process import Target

if TYPE_CHECKING:
    from collections.abc import Iterator

    from uffdballoon.model.ram import Layout

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_qemu]

# How many guests are started of a kind of which one in a few was mistaken.
_TIMES = int(os.environ.get("UFFDBALLOON_RAM_TIMES", "8"))
# Of machine types that a QEMU has no more, or not yet; and of -m 0x100, which 7.2 takes.
_NOT_THERE = ("unsupported machine type", "Parameter 'memory.size' expects size")
_ROMS = range(0xA0000, 0x100000)


def layout_of(qemu: PausedQemu, *, by_monitor: bool) -> Layout:
    with Target.open(qemu.pid) as target:
        return look_at(target, str(qemu.qmp_path) if by_monitor else None)[0]


class _Stretch(NamedTuple):
    gpa: int
    size_bytes: int
    hva: int
    node: int | None


def joined(layout: Layout) -> list[_Stretch]:
    """Join neighbours, and leave out the hole for ROMs, which differs by what is shown there."""
    stretches: list[_Stretch] = []
    for segment in layout.segments:
        first, end = int(segment.gpa), int(segment.gpa_range.end)
        if first < _ROMS.stop:
            end = min(end, _ROMS.start) if first < _ROMS.start else end
            first = max(first, _ROMS.stop) if first >= _ROMS.start else first
        if first >= end:
            continue
        hva = segment.hva + first - segment.gpa
        new = _Stretch(first, end - first, hva, segment.block.numa_node)
        last = stretches[-1] if stretches else None
        if last and (first, hva, new.node) == (
            last.gpa + last.size_bytes,
            last.hva + last.size_bytes,
            last.node,
        ):
            stretches[-1] = last._replace(size_bytes=last.size_bytes + new.size_bytes)
        else:
            stretches.append(new)
    return stretches


@contextlib.contextmanager
def _started(*arguments: str) -> Iterator[PausedQemu]:
    """Start a QEMU; one of another version than 7.2 need not have what is asked for."""
    with contextlib.ExitStack() as running:
        try:
            qemu = running.enter_context(PausedQemu(*arguments))
        except LabError as error:
            if not any(words in error.why for words in _NOT_THERE):
                raise
            pytest.skip(f"not in this version of QEMU: {error.why}")
        yield qemu


def _refusal(qemu: PausedQemu) -> str:
    with pytest.raises(UnsupportedError) as refused:
        layout_of(qemu, by_monitor=False)
    assert "--qmp" in refused.value.hint
    return refused.value.why


@pytest.mark.parametrize("time", range(_TIMES))
def test_a_dimm_as_large_as_ram_is_never_taken_for_it(time: int) -> None:
    with PausedQemu(
        *("-m", "256M,slots=4,maxmem=4G", "-smp", str(1 + time % 4)),
        *("-object", "memory-backend-ram,id=d1,size=256M"),
        *("-device", "pc-dimm,id=dimm1,memdev=d1,node=0"),
        *("-object", "iothread,id=i1", "-name", "g,debug-threads=on"),
    ) as qemu:
        layout_of(qemu, by_monitor=True)
        assert _refusal(qemu).startswith("2 of its mappings")


def test_a_dimm_as_large_as_ram_that_is_plugged_in_is_never_taken_for_it() -> None:
    with PausedQemu("-m", "256M,slots=4,maxmem=4G") as qemu:
        before = joined(layout_of(qemu, by_monitor=False))
        assert before == joined(layout_of(qemu, by_monitor=True))
        qemu.monitor.execute(
            "object-add", **{"qom-type": "memory-backend-ram", "id": "d1", "size": 256 << 20}
        )
        assert _refusal(qemu).startswith("2 of its mappings")


@pytest.mark.parametrize("time", range(_TIMES))
def test_ram_beside_stacks_of_threads_is_always_found(time: int) -> None:
    threads = [a for n in range(12 + time) for a in ("-object", f"iothread,id=io{n}")]
    with PausedQemu("-machine", "q35", "-m", "256M", "-smp", "8", *threads) as qemu:
        found = joined(layout_of(qemu, by_monitor=False))
        assert found == joined(layout_of(qemu, by_monitor=True))


@pytest.mark.parametrize(
    "arguments",
    [
        ("-machine", "pc-i440fx-1.7", "-m", "4G"),
        ("-machine", "pc-i440fx-1.7", "-m", "3584M"),
        ("-machine", "pc-i440fx-2.0", "-m", "3584M"),
        ("-machine", "pc", "-m", "3583M"),
        ("-machine", "pc-i440fx-7.0", "-m", "size=4194304k"),
        ("-machine", "q35", "-m", "2815M"),
        ("-machine", "pc-q35-2.4", "-m", "2816M"),
        ("-machine", "isapc", "-m", "1.1G"),
        ("-machine", "microvm", "-m", "2G"),
        ("--machine", "usb=off,type=q35", "--m", "0x100", "-M", "graphics=off"),
        ("-m", "64", "-m", "slots=2,maxmem=1G"),
        ("-numa", "node,mem=64", "-numa", "node,mem=96M", "-machine", "pc-i440fx-3.1", "-m", "160"),
    ],
    ids=" ".join,
)
def test_a_machine_has_its_ram_where_the_monitor_says(arguments: tuple[str, ...]) -> None:
    with _started(*arguments) as qemu:
        found = joined(layout_of(qemu, by_monitor=False))
        assert found == joined(layout_of(qemu, by_monitor=True))


def test_machines_of_which_versions_differ_are_refused() -> None:
    with PausedQemu("-machine", "microvm", "-m", "3G") as qemu:
        assert "differ" in _refusal(qemu)
    with PausedQemu("-machine", "pc,max-ram-below-4g=1G", "-m", "2G") as qemu:
        assert "max-ram-below-4g" in _refusal(qemu)


def test_nodes_that_differ_in_size_or_kind_are_told_apart() -> None:
    with PausedQemu(
        *("-m", "320M", "-machine", "q35"),
        *("-object", "memory-backend-ram,id=b,size=64M"),
        *("-object", "memory-backend-memfd,id=a,size=128M"),
        *("-object", "memory-backend-ram,id=c,size=128M"),
        *("-numa", "node,cpus=0", "-numa", "node,memdev=b"),
        *("-numa", "node,memdev=a,nodeid=2", "-numa", "node,memdev=c"),
    ) as qemu:
        layout = layout_of(qemu, by_monitor=False)
        assert joined(layout) == joined(layout_of(qemu, by_monitor=True))
        assert {b.memdev: b.numa_node for b in layout.blocks} == {"b": 1, "a": 2, "c": 3}


def test_nodes_in_files_are_told_apart_by_their_names() -> None:
    memory = "memory-backend-file,size=64M,share=on,mem-path=/dev/shm"
    with PausedQemu(
        *("-m", "128M", "-object", f"{memory},id=x", "-object", f"{memory},id=y"),
        *("-numa", "node,memdev=y", "-numa", "node,memdev=x"),
    ) as qemu:
        layout = layout_of(qemu, by_monitor=False)
        assert joined(layout) == joined(layout_of(qemu, by_monitor=True))


@pytest.mark.parametrize("memory_is", ["below its root", "outside of it"])
def test_files_of_a_qemu_with_another_root_are_told_apart(memory_is: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    memory = "memory-backend-file,size=64M,share=on,mem-path=/dev/shm"
    arguments = ["-m", "128M", "-object", f"{memory},id=x", "-object", f"{memory},id=y"]
    arguments += ["-numa", "node,memdev=y", "-numa", "node,memdev=x"]
    options = QemuOptions()
    if memory_is == "below its root":
        program = write_chrooted_qemu(tmp_path / "qemu", root, ours=True)
        options = QemuOptions(binary=str(program))
    else:
        arguments += _chroot_option(root)
    with PausedQemu(*arguments, options=options) as qemu:
        assert str(root) in root_of(qemu.pid)
        if memory_is == "outside of it" and root_of(qemu.pid) != str(root):
            # The root that it had before, where QEMU itself is run by chroot(1), nobody tells.
            assert _refusal(qemu).startswith("2 of its mappings")
            return
        layout = layout_of(qemu, by_monitor=False)
        assert joined(layout) == joined(layout_of(qemu, by_monitor=True))


def _chroot_option(root: Path) -> list[str]:
    """Have QEMU go to another root by itself; -chroot went with QEMU 10.0."""
    told = subprocess.run(
        ["qemu-system-x86_64", "-help"], check=True, capture_output=True, text=True
    ).stdout
    if "-chroot dir" in told:
        return ["-chroot", str(root)]
    return ["-run-with", f"chroot={root}"]


def test_no_configuration_file_is_read_below_the_root_that_qemu_went_to_later(
    tmp_path: Path,
) -> None:
    config, root = tmp_path / "vm.conf", tmp_path / "root"
    _write_config(config, "192M")
    decoys = [root / str(config).lstrip("/"), root / "etc/qemu/qemu.conf"]
    for decoy in decoys:
        decoy.parent.mkdir(parents=True)
        _write_config(decoy, "128M")
    chroot = _chroot_option(root)
    # Of the size and kind that the wrong file has.
    other = ("-object", "memory-backend-memfd,id=other,size=128M")
    with PausedQemu("-readconfig", str(config), *chroot, *other) as qemu:
        assert "another root directory" in _refusal(qemu)
    with PausedQemu("-m", "64", *chroot) as qemu:
        found = joined(layout_of(qemu, by_monitor=False))
        assert found == joined(layout_of(qemu, by_monitor=True))


def _write_config(path: Path, size: str) -> None:
    path.write_text(
        f'# written by a test\n[machine]\n  type = "q35"\n\n[memory]\n  size = "{size}"\n\n'
        f'[object "mem0"]\n  qom-type = "memory-backend-memfd"\n  size = "{size}"\n\n'
        '[numa]\n  type = "node"\n  nodeid = "0"\n  memdev = "mem0"\n'
    )


def test_the_configuration_file_is_read_as_the_target_sees_it(tmp_path: Path) -> None:
    config, link = tmp_path / "vm.conf", tmp_path / "link.conf"
    _write_config(config, "192M")
    link.symlink_to(config)
    shared = tmp_path / "shared"
    with PausedQemu(
        *("-readconfig", str(link), "-device", "ivshmem-plain,memdev=shm"),
        *("-object", f"memory-backend-file,id=shm,size=128M,mem-path={shared},share=on"),
    ) as qemu:
        layout = layout_of(qemu, by_monitor=False)
        assert [block.backing for block in layout.blocks] == [Backing.MEMFD]
        assert joined(layout) == joined(layout_of(qemu, by_monitor=True))

        _write_config(config, "128M")
        assert "-readconfig" in _refusal(qemu)
        assert "changed after" in _refusal(qemu)
        config.unlink()
        assert "cannot be read" in _refusal(qemu)
        with Target.open(qemu.pid) as target:
            assert look_at(target, str(qemu.qmp_path))[0].allocated_bytes == 192 << 20


def test_the_file_that_qemu_reads_by_itself_is_read(tmp_path: Path) -> None:
    config = tmp_path / "etc" / "qemu" / "qemu.conf"
    config.parent.mkdir(parents=True)
    _write_config(config, "256M")
    program = tmp_path / "qemu"
    program.write_text(
        "#!/bin/sh\nexec unshare --mount -- sh -c "
        f'\'mount --bind {tmp_path}/etc /etc && exec qemu-system-x86_64 "$@"\' sh "$@"\n'
    )
    program.chmod(0o755)
    # As large as RAM is by default, and of a kind with it.
    dimm = ["-m", "slots=2,maxmem=1G", "-object", "memory-backend-memfd,id=d,size=128M"]
    dimm += ["-device", "pc-dimm,memdev=d"]
    options = QemuOptions(binary=str(program))
    with PausedQemu(*dimm, options=options) as qemu:
        if root_of(qemu.pid) != "/":
            pytest.skip("this QEMU is run by chroot(1), with an /etc of its own")
        found = joined(layout_of(qemu, by_monitor=False))
        assert found == joined(layout_of(qemu, by_monitor=True))[: len(found)]
        assert sum(stretch.size_bytes for stretch in found) > 255 << 20
        _write_config(config, "192M")
        assert "changed after" in _refusal(qemu)
    with PausedQemu("-no-user-config", "-m", "64", options=options) as qemu:
        found = joined(layout_of(qemu, by_monitor=False))
        assert found == joined(layout_of(qemu, by_monitor=True))


def test_a_file_whose_name_another_one_has_got_since_is_not_taken_for_ram() -> None:
    memory = Path(f"/dev/shm/uffdballoon-named-again-{os.getpid()}")  # noqa: S108
    try:
        with PausedQemu(
            *("-m", "64M,slots=2,maxmem=1G", "-machine", "memory-backend=r", "-object"),
            f"memory-backend-file,id=r,size=64M,mem-path={memory},share=on",
        ) as qemu:
            memory.unlink()
            memory.touch()
            plugged = {"qom-type": "memory-backend-file", "id": "d", "size": 64 << 20}
            qemu.monitor.execute("object-add", **plugged, **{"mem-path": str(memory)}, share=True)
            assert _refusal(qemu).startswith("2 of its mappings")
    finally:
        memory.unlink(missing_ok=True)


def test_the_backend_of_an_old_machine_type_is_recognised_by_its_path() -> None:
    with _started(
        *("-machine", "pc-i440fx-3.1", "-m", "64"),
        *("-object", "memory-backend-memfd,id=ram-node0,size=64M"),
        *("-numa", "node,nodeid=0,cpus=0,memdev=ram-node0"),
    ) as qemu:
        (block,) = layout_of(qemu, by_monitor=True).blocks
        assert (block.idstr, block.memdev) == ("/objects/ram-node0", "ram-node0")
        assert (block.backing, block.numa_node) == (Backing.MEMFD, 0)


def test_memory_of_a_virtio_mem_device_is_named() -> None:
    with PausedQemu(
        *("-machine", "q35", "-m", "64M,maxmem=1G"),
        *("-object", "memory-backend-ram,id=vm0,size=256M"),
        *("-device", "virtio-mem-pci,id=vmem,memdev=vm0,requested-size=128M"),
    ) as qemu:
        layout = layout_of(qemu, by_monitor=True)
        assert [block.idstr for block in layout.blocks] == ["pc.ram"]
        (told,) = layout.unknown
        assert "256 MiB of virtio-mem device vmem (backend vm0, gpa 0x100000000, node 0)" in told
        assert joined(layout_of(qemu, by_monitor=False)) == joined(layout)
