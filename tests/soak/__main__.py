# SPDX-License-Identifier: GPL-2.0-or-later
"""Soak: what managers and targets hold over time, and whether the counts stay exact."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import psutil

from tests.support.forked import ForkedManager, Phase
from tests.support.moments import DIRECT, OWN, OWNED, SEED
from uffdballoon.lab.qemu import Accel, Memory, Qemu, QemuOptions
from uffdballoon.model.addresses import PAGE_BYTES, GpaRange
from uffdballoon.model.granule import Granule
from uffdballoon.model.touch import Access

if TYPE_CHECKING:
    from collections.abc import Callable

_RESTART_EVERY = 20
_SAMPLE_S = 1.0
_PATIENCE_S = 20.0
_HONEST = GpaRange.of(OWN.end, OWN.size_bytes)


@dataclass
class Counts:
    cycles: int = 0
    restarts: int = 0
    violations: int = 0
    false_violations: int = 0
    missed: int = 0
    bad_lines: int = 0


@dataclass
class Sample:
    at_s: float
    guest: int
    manager_rss: int
    manager_fds: int
    target_rss: int
    target_fds: int
    target_threads: int
    target_mappings: int


@dataclass
class Soaked:
    """A guest and its manager."""

    number: int
    qemu: Qemu
    manager: ForkedManager
    counts: Counts = field(default_factory=Counts)

    def ask(self, verb: str, **arguments: object) -> dict[str, Any]:
        with self.manager.ask(verb, **arguments) as connection:
            answer = json.loads(connection.makefile("rb").readline())
        assert answer["ok"], answer
        result: dict[str, Any] = answer["result"]
        return result

    def violations(self) -> int:
        return int(self.ask("status")["touches"]["violations"])

    def cycle(self) -> None:
        """Keep its word, break it, and be restarted now and then."""
        before = self.violations()
        self.qemu.guest.balloon_inflate(OWN)
        _wait_until(lambda: self.ask("status")["ballooned_bytes"] == OWN.size_bytes)
        self.qemu.guest.touch(_HONEST, Access.WRITE)
        self.qemu.guest.balloon_deflate(OWN)
        self.qemu.guest.touch(OWN, Access.WRITE)
        self.counts.false_violations += self.violations() - before
        before = self.violations()
        where = {
            "gpa": DIRECT.start,
            "size": DIRECT.size_bytes,
            "granule": Granule.SMALL.value,
        }
        self.ask("inflate", guest_agreed=True, **where)
        self.qemu.guest.touch(DIRECT, Access.WRITE)
        self.ask("deflate", **where)
        told = self.violations() - before
        self.counts.violations += told
        self.counts.missed += DIRECT.size_bytes // PAGE_BYTES - told
        self.counts.cycles += 1
        if self.counts.cycles % _RESTART_EVERY == 0:
            self.restart()

    def restart(self) -> None:
        self.manager.signal(signal.SIGKILL)
        with self.manager:
            self.manager.wait()
        self.manager = _attach(self.qemu)
        self.counts.restarts += 1

    def sample(self, at_s: float) -> Sample:
        manager, target = psutil.Process(self.manager.pid), psutil.Process(self.qemu.pid)
        return Sample(
            at_s=at_s,
            guest=self.number,
            manager_rss=manager.memory_info().rss,
            manager_fds=manager.num_fds(),
            target_rss=target.memory_info().rss,
            target_fds=target.num_fds(),
            target_threads=target.num_threads(),
            target_mappings=len(Path(f"/proc/{self.qemu.pid}/maps").read_text().splitlines()),
        )


def _attach(qemu: Qemu) -> ForkedManager:
    manager = ForkedManager(qemu.pid, "--qmp", qemu.qmp_path, "--on-exit", "hold")
    assert manager.reach(Phase.SERVE), manager.said
    return manager


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def _soak(minutes: float) -> dict[str, Any]:
    samples: list[Sample] = []
    options = QemuOptions(accel=Accel.TCG, memory=Memory(size_bytes=128 << 20))
    with contextlib.ExitStack() as running:
        soaked = []
        for number in range(2):
            qemu = running.enter_context(Qemu(options))
            qemu.guest.fill(OWNED, SEED)
            soaked.append(Soaked(number, qemu, _attach(qemu)))
        begun = time.monotonic()
        due = begun
        while time.monotonic() - begun < minutes * 60:
            for one in soaked:
                one.cycle()
            if time.monotonic() >= due:
                due = time.monotonic() + _SAMPLE_S
                samples += [one.sample(time.monotonic() - begun) for one in soaked]
        for one in soaked:
            one.counts.bad_lines = one.qemu.guest.verify(OWNED, SEED).bad_lines
            one.manager.ask("detach").close()
            with one.manager:
                assert one.manager.wait() == 0, one.manager.said
            one.qemu.guest.ping()
    return {
        "minutes": minutes,
        "guests": [asdict(one.counts) for one in soaked],
        "samples": [asdict(sample) for sample in samples],
    }


def _plot(report: dict[str, Any], path: Path) -> None:
    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - its backend is chosen first

    figure, axes = plt.subplots(2, 1, sharex=True, figsize=(8, 5))
    for axis, who in zip(axes, ("manager", "target"), strict=True):
        for guest in range(2):
            of = [sample for sample in report["samples"] if sample["guest"] == guest]
            mib = [sample[f"{who}_rss"] / (1 << 20) for sample in of]
            axis.plot([sample["at_s"] for sample in of], mib, label=f"guest {guest}")
        axis.set_ylabel(f"{who}, MiB resident")
        axis.set_ylim(bottom=0)
        axis.legend()
    axes[-1].set_xlabel("seconds")
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    report = _soak(arguments.minutes)
    if arguments.plot:
        _plot(report, arguments.plot)
    for number, counts in enumerate(report["guests"]):
        print(f"guest {number}: {counts}")
    for guest in range(2):
        of = [sample for sample in report["samples"] if sample["guest"] == guest]
        for name in ("manager_rss", "manager_fds", "target_rss", "target_fds", "target_mappings"):
            values = [sample[name] for sample in of]
            middle = values[len(values) // 2]
            print(f"guest {guest}: {name} {values[0]} first, {middle} halfway, {values[-1]} last")
    wrong = ("false_violations", "missed", "bad_lines")
    return int(any(counts[name] for counts in report["guests"] for name in wrong))


if __name__ == "__main__":
    raise SystemExit(main())
