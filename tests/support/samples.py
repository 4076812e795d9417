# SPDX-License-Identifier: GPL-2.0-or-later
"""Everything that leaves the program as JSON, once, from a real attach of the micro-guest.

``python -m tests.support.samples DIRECTORY`` wrote tests/data/json/ with the build of before there
were records: the keys and values there are what version numbers promise.
"""

from __future__ import annotations

import json
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.command import Command
from uffdballoon.daemon.runtime import socket_path
from uffdballoon.lab.qemu import Accel, Memory, Qemu, QemuOptions
from uffdballoon.model.addresses import HUGE_BYTES, PAGE_BYTES, GpaRange
from uffdballoon.model.touch import Access

if TYPE_CHECKING:
    from collections.abc import Callable

NODE_BYTES = 96 << 20
BALLOON = GpaRange.of(64 << 20, 4 << 20)
_SCATTERED = GpaRange.of(NODE_BYTES + (40 << 20), 8 * PAGE_BYTES)
_PATIENCE_S = 60.0
_STRICT = (
    *(
        "--contract",
        "cap",
        "--floor",
        (8 << 20) - 4 * PAGE_BYTES,
        "--node-floor",
        "1=64K",
        "--boot-grace",
        "60s",
    ),
    *("--boot-grace-bytes", "1M", "--max-broken", 3, "--node-max-broken", "1=2"),
    *("--policy", "zero-read,throttle=1/s:1,freeze"),
)


def _options(nodes: int) -> QemuOptions:
    memory = Memory(size_bytes=2 * NODE_BYTES, nodes=nodes)
    return QemuOptions(accel=Accel.KVM, memory=memory, seabios=True)


def take() -> dict[str, Any]:
    """Return what each verb says, by name; a list where it says one line after the other."""
    with Qemu(_options(nodes=1)) as qemu:
        taken = _without_monitor(qemu, Command())
    with Qemu(_options(nodes=2)) as qemu:
        return taken | _with_monitor(qemu, Command())


def _without_monitor(qemu: Qemu, command: Command) -> dict[str, Any]:
    taken = {"inspect": command.ask("inspect", qemu.pid)}
    with command.attached(qemu.pid, "--qmp", "none"):
        taken["status-without-monitor"] = command.ask("status", qemu.pid)
    return taken


def _with_monitor(qemu: Qemu, command: Command) -> dict[str, Any]:
    qemu.guest.fill(BALLOON, 1, stride_bytes=PAGE_BYTES)
    taken = {
        "list": [row for row in command.ask("list") if row["pid"] == qemu.pid],
        "doctor": command.ask("doctor", "--pid", qemu.pid, "--qmp", qemu.qmp_path),
        "inspect-monitor": command.ask("inspect", qemu.pid, "--qmp", qemu.qmp_path),
    }
    with command.attached(qemu.pid, "--qmp", qemu.qmp_path, *_STRICT):
        taken |= _of_a_ladder(qemu, command)
    return taken


def _of_a_ladder(qemu: Qemu, command: Command) -> dict[str, Any]:
    guest, pid = qemu.guest, qemu.pid
    taken: dict[str, Any] = {}
    size = BALLOON.size_bytes + PAGE_BYTES
    span = ("--gpa", BALLOON.start, "--size", size)
    taken["inflate"] = command.ask("inflate", pid, *span, "--granule", "thp", "--guest-agreed")
    taken["inflate-node"] = command.ask(
        *("inflate", pid, "--node", 1, "--size", 2 * HUGE_BYTES, "--granule", "thp"),
        "--guest-agreed",
    )
    guest.touch(GpaRange.of(BALLOON.start, 4 * PAGE_BYTES), Access.READ)
    pending = guest.start_touch(GpaRange.of(BALLOON.start, 8 * PAGE_BYTES), Access.WRITE)
    _until(lambda: command.ask("status", pid)["held"])
    taken["status-held"] = command.ask("status", pid)
    taken["map"] = command.ask("map", pid)
    taken["wire-map"] = _ask(pid, "map", recent_s=60.0)
    (held,) = taken["status-held"]["held"]
    taken["wire-release"] = _ask(pid, "release", tid=held["tid"])
    while not pending.is_there(0.02):
        command.run("release", pid)
    taken["deflate"] = command.ask("deflate", pid, *span)
    taken["set"] = command.ask("set", pid, "--balloon", "190M", "--no-wait")
    guest.balloon_inflate(_SCATTERED, stride_bytes=HUGE_BYTES, together=1)
    _until(lambda: _told(command, pid, "fragmentation-limit") and _told(command, pid, "inflate"))
    taken["wire-progress"] = _ask(pid, "progress")
    taken["verify"] = command.ask("verify", pid)
    with tempfile.TemporaryDirectory() as directory:
        record = Path(directory) / "balloon.json"
        taken["stats"] = command.ask("stats", pid, "--record", record)
        taken["recording"] = json.loads(record.read_text())
        taken["simulate"] = command.ask("stats", "--simulate", record, "--ram", "1G")
    qemu.monitor.execute("stop")
    qemu.monitor.execute("cont")
    guest.balloon_deflate(_SCATTERED, stride_bytes=HUGE_BYTES)
    _until(lambda: _told(command, pid, "deflate"))
    guest.reset()
    _until(lambda: _told(command, pid, "reset"))
    taken["status-grace"] = command.ask("status", pid)
    taken["events"] = _events(command, pid)
    taken["wire-error"] = _answer(pid, "inflate", gpa=1, size=1)
    taken["wire-detach"] = _ask(pid, "detach")
    return taken


def _events(command: Command, pid: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in command.run("events", pid, "--json").stdout.splitlines()]


def _told(command: Command, pid: int, kind: str) -> bool:
    return any(event["kind"] == kind for event in _events(command, pid))


def _until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _ask(pid: int, verb: str, **arguments: object) -> Any:  # noqa: ANN401 - the verb's own
    answer = _answer(pid, verb, **arguments)
    assert answer["ok"], answer
    return answer["result"]


def _answer(pid: int, verb: str, **arguments: object) -> dict[str, Any]:
    """Ask as whatever is not this program would."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(socket_path(pid)))
        request = {"v": 1, "verb": verb, **arguments}
        connection.sendall(json.dumps(request).encode() + b"\n")
        answer: dict[str, Any] = json.loads(connection.makefile("rb").readline())
    return answer


def main() -> None:
    directory = Path(sys.argv[1])
    for name, value in take().items():
        text = json.dumps(value, indent=1) + "\n"
        (directory / f"{name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
