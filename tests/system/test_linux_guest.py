# SPDX-License-Identifier: GPL-2.0-or-later
"""The Linux guest boots, obeys, and its balloon driver does what QEMU asks of it."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from uffdballoon.errors import GuestSilentError, LabError
from uffdballoon.lab.linux_qemu import LinuxQemu
from uffdballoon.lab.qemu_options import Memory, QemuOptions
from uffdballoon.model.ram import Backing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from uffdballoon.lab.monitor import Monitor

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.needs_qemu,
    pytest.mark.needs_linux_guest,
]

_PATIENCE_S = 60
MIB = 1 << 20
RAM_BYTES = 768 * MIB
LOW_BYTES = 512 * MIB
BALLOON_BYTES = 256 * MIB
HUNGER_BYTES = 384 * MIB
"""More than is left of LOW_BYTES without the balloon, less than LOW_BYTES."""


@pytest.fixture(scope="module")
def qemu() -> Iterator[LinuxQemu]:
    options = QemuOptions(memory=Memory(size_bytes=RAM_BYTES), processors=2, name_threads=True)
    with LinuxQemu(options) as qemu:
        yield qemu


def _set_balloon(monitor: Monitor, left_bytes: int) -> None:
    monitor.execute("balloon", value=left_bytes)
    _wait_for_balloon(monitor, left_bytes)


def _wait_for_balloon(monitor: Monitor, left_bytes: int) -> None:
    _wait_until(lambda: monitor.balloon_bytes() == left_bytes)


def _wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_it_runs_commands_and_tells_status_and_output(qemu: LinuxQemu) -> None:
    ran = qemu.guest.run("echo one; echo two >&2; printf 'no newline'; exit 3")
    assert (ran.status, ran.output) == (3, "one\ntwo\nno newline")
    assert qemu.guest.run("kill -TERM $$").status == 128 + 15
    assert qemu.guest.check("nproc") == "2\n"
    with pytest.raises(LabError, match="status 1"):
        qemu.guest.check("false")
    with pytest.raises(LabError, match="one line"):
        qemu.guest.run("true\nfalse")


def test_output_of_any_length_and_kind_comes_back_as_it_was_written(qemu: LinuxQemu) -> None:
    long = qemu.guest.check("seq 1 4000")
    assert long == "".join(f"{number}\n" for number in range(1, 4001))
    assert qemu.guest.check("head -c 10000 /dev/zero | tr '\\0' x") == "x" * 10000
    assert qemu.guest.check("echo 'a\r\tb = + -'") == "a\r\tb = + -\n"
    assert qemu.guest.run("echo noise > /dev/kmsg; echo out").output == "out\n"


def test_commands_run_beside_each_other(qemu: LinuxQemu) -> None:
    guest = qemu.guest
    reader = guest.talk("read line; echo got $line; cat")
    assert not reader.is_there()
    assert guest.check("echo meanwhile") == "meanwhile\n"
    reader.send_line("this")
    assert reader.read_line() == "got this"
    assert not reader.is_there()
    reader.kill()
    assert reader.wait().status == 128 + 9
    assert guest.run("sleep 1000 & echo started").output == "started\n"
    guest.check("killall sleep")
    assert guest.run("yes & echo started").status == 0
    _wait_until(lambda: guest.run("pidof yes").status == 1)  # nobody takes what it writes


def test_silence_is_told(qemu: LinuxQemu) -> None:
    pending = qemu.guest.start("sleep 1000")
    with pytest.raises(GuestSilentError, match="sleep 1000"):
        pending.wait(timeout_s=0.01)
    pending.kill()
    assert pending.wait().status == 128 + 9


def test_its_memory_is_about_what_qemu_gave_it(qemu: LinuxQemu) -> None:
    memory = qemu.guest.memory_info()
    assert RAM_BYTES * 0.9 < memory["MemTotal"] < RAM_BYTES
    assert memory["MemFree"] < memory["MemTotal"]


def test_its_driver_gives_up_and_takes_back_what_the_monitor_asks(qemu: LinuxQemu) -> None:
    before = qemu.guest.memory_info()["MemTotal"]
    _set_balloon(qemu.monitor, RAM_BYTES - BALLOON_BYTES)
    assert before - qemu.guest.memory_info()["MemTotal"] == BALLOON_BYTES
    _set_balloon(qemu.monitor, RAM_BYTES)
    assert qemu.guest.memory_info()["MemTotal"] == before


def test_a_driver_that_is_unloaded_takes_everything_back(qemu: LinuxQemu) -> None:
    guest = qemu.guest
    _set_balloon(qemu.monitor, RAM_BYTES - BALLOON_BYTES)
    guest.unload_balloon_driver()
    assert qemu.monitor.balloon_bytes() == RAM_BYTES
    assert "virtio_balloon" not in guest.check("lsmod")
    guest.load_balloon_driver()
    _wait_for_balloon(qemu.monitor, RAM_BYTES - BALLOON_BYTES)
    _set_balloon(qemu.monitor, RAM_BYTES)


def test_its_workload_keeps_its_memory_while_the_balloon_moves(qemu: LinuxQemu) -> None:
    pending = qemu.guest.start(f"guestwork memory {128 * MIB} 7 3")
    assert pending.read_line() == f"filled={128 * MIB // 4096}"
    while not pending.is_there():
        _set_balloon(qemu.monitor, RAM_BYTES - BALLOON_BYTES)
        _set_balloon(qemu.monitor, RAM_BYTES)
    ran = pending.wait()
    assert ran.status == 0
    assert re.search(r"written=[1-9]\d* bad=0\n", ran.output)


def test_its_benchmark_measures_a_slice_when_told(qemu: LinuxQemu) -> None:
    bench = qemu.guest.talk(f"guestwork bench {16 * MIB} 0 20 thp")
    assert bench.read_line() == f"ready={16 * MIB}"
    for number in range(3):
        bench.send_line()
        line = bench.read_line()
        assert re.fullmatch(
            rf"slice={number} sequential_bytes_per_s=[1-9]\d+ random_per_s=[1-9]\d+", line
        )
    bench.kill()
    assert bench.wait().status == 128 + 9


def test_it_reboots_and_gives_up_anew_what_is_asked(qemu: LinuxQemu) -> None:
    guest = qemu.guest
    before = guest.memory_info()["MemTotal"]
    guest.check("echo here > /tmp/mark")
    pending = guest.start("sleep 1000")
    _set_balloon(qemu.monitor, RAM_BYTES - BALLOON_BYTES)
    guest.reboot()
    assert guest.run("cat /tmp/mark").status == 1
    assert guest.kernel_log().count("Linux version") == 2
    with pytest.raises(LabError, match="reset"):
        pending.wait()
    # QEMU 7.2 goes on telling the `actual` of before the reset until the driver tells another.
    _wait_until(lambda: guest.memory_info()["MemTotal"] == before - BALLOON_BYTES)
    _set_balloon(qemu.monitor, RAM_BYTES)
    assert guest.memory_info()["MemTotal"] == before


def test_a_reset_from_outside_is_waited_for(qemu: LinuxQemu) -> None:
    qemu.monitor.execute("system_reset")
    qemu.guest.wait_for_boot()
    assert qemu.guest.check("echo up") == "up\n"


@pytest.mark.parametrize("deflate", [False, True], ids=["balloon-stays", "deflate-on-oom"])
def test_a_guest_short_of_memory(deflate: bool) -> None:  # noqa: FBT001
    options = QemuOptions(memory=Memory(size_bytes=LOW_BYTES), deflate_on_oom=deflate)
    with LinuxQemu(options) as qemu:
        _set_balloon(qemu.monitor, LOW_BYTES - BALLOON_BYTES)
        ran = qemu.guest.run(f"guestwork hog {HUNGER_BYTES}")
        left_bytes = qemu.monitor.balloon_bytes()
        if deflate:
            assert (ran.status, ran.output) == (0, f"touched={HUNGER_BYTES}\n")
            assert left_bytes > HUNGER_BYTES
        else:
            assert ran.status == 128 + 9
            assert left_bytes == LOW_BYTES - BALLOON_BYTES
        assert qemu.guest.check("echo alive") == "alive\n"
        assert ("Out of memory" in qemu.guest.kernel_log()) is not deflate
        qemu.guest.power_off()
        assert qemu.wait_for_exit() == 0


def test_it_boots_unprivileged_with_every_option() -> None:
    options = QemuOptions(
        memory=Memory(size_bytes=LOW_BYTES, backing=Backing.MEMFD, share=True),
        processors=2,
        run_as=65534,
        deflate_on_oom=True,
        free_page_reporting=True,
        name_threads=True,
        tcg_threads="multi",
    )
    with LinuxQemu(options) as qemu:
        assert qemu.guest.check("nproc") == "2\n"
        names = {path.read_text() for path in Path(f"/proc/{qemu.pid}/task").glob("*/comm")}
        assert {"CPU 0/TCG\n", "CPU 1/TCG\n"} <= names
        # VIRTIO_BALLOON_F_DEFLATE_ON_OOM, _REPORTING, VIRTIO_F_VERSION_1: one digit a bit.
        features = qemu.guest.check("cat /sys/bus/virtio/devices/virtio0/features")
        assert [features[bit] for bit in (2, 5, 32)] == ["1", "1", "1"]


def test_two_that_fetch_the_packages_at_once_share_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UFFDBALLOON_CACHE", str(tmp_path))
    program = "from uffdballoon.lab.linux_image import find_packages as f; print(f().directory)"
    both = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = {process.communicate()[0] for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(outputs) == 1
    (directory,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert outputs == {f"{directory}\n"}
    assert {"vmlinuz", "busybox", "virtio_balloon.ko"} <= {p.name for p in directory.iterdir()}
