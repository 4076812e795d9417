# SPDX-License-Identifier: GPL-2.0-or-later
"""Sizes that the guest is asked for, and monitors that are busy, cut, or not there."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

import pytest

from tests.support.command import COMMAND, attached, refused, run, status_of
from tests.support.marks import REAL_QEMU
from uffdballoon.errors import MonitorBusyError
from uffdballoon.lab.monitor import Monitor
from uffdballoon.lab.qemu import Accel, Memory, Qemu, QemuOptions
from uffdballoon.model.addresses import GpaRange
from uffdballoon.model.policy import parse_policy
from uffdballoon.model.records.balloon import BalloonAccount
from uffdballoon.model.records.events import Event, EventKind, Notice
from uffdballoon.session import Session, SessionOptions

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = REAL_QEMU

RAM_BYTES = 192 << 20
BALLOON = GpaRange.of(64 << 20, 4 << 20)
OWNED = GpaRange.of(32 << 20, 1 << 20)
SEED = 0xB0B
_PATIENCE_S = 60.0
_LEFT = RAM_BYTES - BALLOON.size_bytes


@pytest.fixture
def tcg(start_qemu: Callable[[QemuOptions], Qemu]) -> Qemu:
    qemu = start_qemu(QemuOptions(accel=Accel.TCG, memory=Memory(size_bytes=RAM_BYTES)))
    qemu.guest.fill(OWNED, SEED)
    return qemu


def _session(qemu: Qemu, policy: str = "observe") -> Session:
    return Session(
        SessionOptions(pid=qemu.pid, qmp_path=str(qemu.qmp_path), policy=parse_policy(policy))
    )


def _wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_set_verify_and_stats_of_a_guest_that_does_as_it_is_asked(
    tcg: Qemu, tmp_path: Path
) -> None:
    record, plot = tmp_path / "balloon.json", tmp_path / "balloon.png"
    with attached(tcg):
        asked = subprocess.Popen(
            [COMMAND, "set", str(tcg.pid), "--balloon", str(_LEFT), "--json"],
            stdout=subprocess.PIPE,
            text=True,
        )
        _wait_until(
            lambda: f"target={BALLOON.size_bytes >> 12:#x}" in tcg.guest.command("balloon target")
        )
        tcg.guest.balloon_inflate(BALLOON)
        progress = json.loads(asked.communicate(timeout=_PATIENCE_S)[0])
        assert asked.returncode == 0
        assert (progress["state"], progress["actual_bytes"]) == ("reached", _LEFT)
        _wait_until(lambda: status_of(tcg)["windows"] == 1)
        verified = run("verify", tcg.pid, "--json")
        assert verified.returncode == 0
        assert json.loads(verified.stdout) == {
            "ballooned_bytes": BALLOON.size_bytes,
            "actual_bytes": _LEFT,
            "unaccounted_bytes": 0,
            "disagreements": [],
        }
        stats = run("stats", tcg.pid, "--json", "--record", record, "--plot", plot)
        found = json.loads(stats.stdout)
        assert found["balloon"]["pages"] == BALLOON.size_bytes >> 12
        assert found["balloon"]["orders"] == {"10": 1}
        assert [inflate["runs"] for inflate in found["inflates"]] == [1]
        assert plot.stat().st_size > 0
        assert "1 runs" in run("stats", tcg.pid).stdout
    larger = run("stats", "--simulate", record, "--ram", "120G", "--json")
    guests = json.loads(larger.stdout)["guests"]
    assert guests[1]["balloon"]["pages"] == 640 * guests[0]["balloon"]["pages"]
    assert tcg.guest.verify(OWNED, SEED).bad_lines == 0


def test_a_guest_that_does_nothing_is_stalled_and_why_is_told(tcg: Qemu) -> None:
    with attached(tcg):
        done = run("set", tcg.pid, "--balloon", _LEFT, "--within", "1ms")
        assert done.returncode == 1
        assert "moving" in done.stderr
        assert "not there in time" in done.stderr
        done = run("set", tcg.pid, "--balloon", _LEFT)
        assert done.returncode == 1
        assert "stalled" in done.stderr
        assert "driver" in done.stderr
        balloon = status_of(tcg)["balloon"]
        assert (balloon["asked_bytes"], balloon["actual_bytes"]) == (_LEFT, RAM_BYTES)
        assert "driver" in balloon["why"]
        told = run("status", tcg.pid).stdout
        assert "4 MiB asked for, 0 B given up by its own word, 0 B known, 0 B freed" in told
        assert "why they differ" in told
        refused(2, "set", tcg.pid, "--balloon", _LEFT, "--within", "1s", "--no-wait")
        tcg.monitor.execute("stop")
        done = run("set", tcg.pid, "--balloon", _LEFT, "--json")
        assert "not running (paused)" in json.loads(done.stdout)["why"]
        tcg.monitor.execute("cont")
        refused(2, "set", tcg.pid, "--balloon", 2 * RAM_BYTES)
        refused(2, "set", tcg.pid, "--balloon", 0)
        assert run("verify", tcg.pid).returncode == 0
    refused(1, "set", tcg.pid, "--balloon", _LEFT)
    assert tcg.guest.verify(OWNED, SEED).bad_lines == 0


def test_a_limit_is_changed_and_the_driver_is_asked_for_it(tcg: Qemu) -> None:
    with attached(tcg, "--contract", "cap", "--limit", RAM_BYTES >> 1, "--policy", "observe"):
        contract = status_of(tcg)["contract"]
        ram_bytes = contract["floor_bytes"] + contract["limit_bytes"]
        assert contract["limit_bytes"] == RAM_BYTES >> 1
        assert "limit" in run("status", tcg.pid).stdout
        done = run("limit", tcg.pid, _LEFT, "--json")
        assert done.returncode == 0, done.stderr
        change = json.loads(done.stdout)
        assert change["policy"]["after"]["floor_bytes"] == ram_bytes - _LEFT
        # What QEMU counts and the guest cannot have is left to it as well.
        assert 0 <= change["driver"]["target_bytes"] - _LEFT < 1 << 20
        assert change["driver"]["state"] == "moving"
        assert status_of(tcg)["contract"]["limit_bytes"] == _LEFT
        (told,) = run("events", tcg.pid, "--json").stdout.splitlines()
        assert json.loads(told)["kind"] == "policy-changed"
        assert "asked for" in run("limit", tcg.pid, _LEFT).stderr
        for wrong in (0, 2 * RAM_BYTES):
            assert "no limit" in refused(2, "limit", tcg.pid, wrong)
        assert run("policy", tcg.pid, "--contract", "told").returncode == 0
        assert "go with --contract cap" in refused(2, "limit", tcg.pid, _LEFT)
        assert status_of(tcg)["contract"]["limit_bytes"] is None
    refused(2, "attach", tcg.pid, "--contract", "cap", "--limit", "64M", "--floor", "64M")
    refused(2, "attach", tcg.pid, "--contract", "cap", "--limit", 2 * RAM_BYTES)
    refused(1, "limit", tcg.pid, _LEFT)


def test_a_guest_without_a_balloon_cannot_be_asked(
    start_qemu: Callable[[QemuOptions], Qemu],
) -> None:
    qemu = start_qemu(QemuOptions(accel=Accel.TCG, balloon=False))
    with attached(qemu, "--contract", "cap", "--limit", "64M", "--policy", "observe"):
        assert "no balloon driver" in run("limit", qemu.pid, "32M").stderr
        assert "no balloon" in refused(4, "set", qemu.pid, "--balloon", "64M")
        assert status_of(qemu)["observer"] == "direct"


def test_bad_files_and_words_for_stats_are_refused(tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.write_text("{")
    refused(2, "stats", "--simulate", bad)
    refused(2, "stats", "--simulate", tmp_path / "none")
    refused(2, "stats")
    refused(2, "stats", "1", "--ram", "1G")


def test_a_monitor_that_another_client_holds_is_done_without(tcg: Qemu) -> None:
    other = Monitor(tcg.qmp_path)
    said: list[str] = []
    try:
        options = SessionOptions(pid=tcg.pid, qmp_path=str(tcg.qmp_path))
        with Session(options, progress=said.append) as session:
            assert any("going on without the monitor" in line for line in said)
            tcg.guest.balloon_inflate(BALLOON)
            session.settle()
            state = session.status()
            assert state.ballooned_bytes == BALLOON.size_bytes
            assert state.balloon == BalloonAccount(actual_bytes=None, unaccounted_bytes=None)
        with pytest.raises(MonitorBusyError, match="another client"):
            _session(tcg, "pause")
    finally:
        other.close()
    tcg.guest.ping()


def _cut_connections_to(path: Path) -> int:
    """Shut our own connections to a socket down, as if QEMU had; return how many."""
    cut = 0
    for entry in list(Path("/proc/self/fd").iterdir()):
        try:
            with socket.socket(fileno=os.dup(int(entry.name))) as connection:
                if connection.getpeername() == str(path):
                    connection.shutdown(socket.SHUT_RDWR)
                    cut += 1
        except OSError:
            continue  # no socket, or not connected
    return cut


def test_a_monitor_that_is_cut_is_connected_to_again(tcg: Qemu) -> None:
    told: list[Event] = []

    def has_told(kind: EventKind) -> bool:
        told.extend(session.settle())
        return any(event.kind is kind for event in told)

    with _session(tcg) as session:
        assert _cut_connections_to(tcg.qmp_path) == 1
        _wait_until(lambda: has_told(EventKind.MONITOR_LOST))
        tcg.guest.balloon_inflate(BALLOON)
        _wait_until(lambda: has_told(EventKind.MONITOR_BACK))
        state = session.status()
        assert state.ballooned_bytes == BALLOON.size_bytes
        assert state.balloon.unaccounted_bytes == 0
        tcg.guest.reset()
        _wait_until(lambda: has_told(EventKind.RESET))
        assert session.status().ballooned_bytes == 0
        assert session.verify().disagreements == ()
    assert tcg.guest.verify(OWNED, SEED).bad_lines == 0


def _is_balloon_change(event: Event) -> TypeGuard[Notice]:
    return event.kind is EventKind.BALLOON_CHANGE


def test_what_the_monitor_tells_becomes_events(tcg: Qemu) -> None:
    with _session(tcg) as session:
        tcg.monitor.execute("stop")
        tcg.monitor.execute("cont")
        tcg.guest.balloon_inflate(BALLOON)
        told: list[Event] = []
        wanted = {EventKind.STOPPED, EventKind.RESUMED, EventKind.INFLATE}

        def all_are_told() -> bool:
            told.extend(session.settle())
            # The guest counts after each batch, and QEMU tells once a second, the last one too.
            left = [event.actual_bytes for event in told if _is_balloon_change(event)]
            return left[-1:] == [_LEFT] and wanted <= {event.kind for event in told}

        _wait_until(all_are_told)
        found = session.verify()
        assert (found.ballooned_bytes, found.unaccounted_bytes) == (BALLOON.size_bytes, 0)
        assert found.disagreements == ()
        assert tcg.guest.verify(OWNED, SEED).bad_lines == 0


def test_memory_that_is_plugged_in_behind_a_silent_guest_is_seen_by_status(
    start_qemu: Callable[[QemuOptions], Qemu],
) -> None:
    memory = Memory(size_bytes=RAM_BYTES, slots=2, max_bytes=1 << 30)
    qemu = start_qemu(QemuOptions(accel=Accel.TCG, memory=memory))
    qemu.guest.fill(OWNED, SEED)
    dimm_bytes = 128 << 20
    with attached(qemu):
        qemu.monitor.execute(
            "object-add", **{"qom-type": "memory-backend-ram", "id": "more", "size": dimm_bytes}
        )
        qemu.monitor.execute("device_add", driver="pc-dimm", id="dimm0", memdev="more")
        assert status_of(qemu)["ram_change_bytes"] == dimm_bytes
        assert "128 MiB came and are not enforced" in run("status", qemu.pid).stdout
        lines = run("events", qemu.pid, "--json").stdout.splitlines()
        events = [json.loads(line) for line in lines]
        assert [e["ram_change_bytes"] for e in events if e["kind"] == "memory-changed"] == [
            dimm_bytes
        ]
        qemu.guest.balloon_inflate(BALLOON)
        _wait_until(lambda: status_of(qemu)["ballooned_bytes"] == BALLOON.size_bytes)
        qemu.guest.write(BALLOON.start, 5)
        state = status_of(qemu)
        assert state["touches"]["violations"] == 1
        assert state["guest_memory"] == {"age_s": None, "values": {}}
    assert qemu.guest.verify(OWNED, SEED).bad_lines == 0


def test_without_a_monitor_the_balloon_is_followed_all_the_same(tcg: Qemu) -> None:
    with Session(SessionOptions(pid=tcg.pid)) as session:
        tcg.guest.balloon_inflate(BALLOON)
        session.settle()
        assert session.status().ballooned_bytes == BALLOON.size_bytes
        tcg.guest.balloon_deflate(BALLOON)
        session.settle()
        assert session.status().ballooned_bytes == 0
    assert tcg.guest.verify(OWNED, SEED).bad_lines == 0


def test_what_was_in_the_balloon_before_is_said_not_to_be_known(tcg: Qemu) -> None:
    tcg.guest.balloon_inflate(BALLOON)
    said: list[str] = []
    options = SessionOptions(pid=tcg.pid, qmp_path=str(tcg.qmp_path))
    with Session(options, progress=said.append) as session:
        assert any("which pages make up the 4 MiB" in line for line in said)
        assert session.verify().unaccounted_bytes == BALLOON.size_bytes
        assert session.status().balloon.why.startswith("some was in the balloon before")
        tcg.guest.balloon_deflate(BALLOON)
        session.settle()
        assert session.verify().unaccounted_bytes == 0
