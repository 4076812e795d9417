# SPDX-License-Identifier: GPL-2.0-or-later
"""Show the main job on a guest, start to finish, and fail when any of it is not so.

Run by ``make demo``.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from examples.demo import host
from examples.demo.guest import RAM_BYTES, Guest, boot
from examples.demo.linux import LinuxDemo, boot_linux
from examples.demo.manager import DemoError, Manager
from examples.demo.screen import Screen
from uffdballoon.errors import UffdballoonError
from uffdballoon.lab.host_state import HOST
from uffdballoon.model.addresses import PAGE_BYTES, GpaRange, round_down

if TYPE_CHECKING:
    from collections.abc import Iterable

MIB = 1 << 20
BALLOON = GpaRange.of(128 * MIB, 64 * MIB)
SLICE_BYTES = 8 * MIB
ENOUGH_BYTES = BALLOON.size_bytes * 15 // 16
"""The rest of the machine moves what is free, too; more than this is measured again."""
TOO_MUCH_BYTES = BALLOON.size_bytes * 17 // 16
ATTEMPTS = 10
LINE_BYTES = 64
SPARSE_BYTES = PAGE_BYTES
"""From one line to the next where not every byte is used."""
QUICK_S = 0.02

# What is filled and summed up. The rest is the guest's own code, below, and its firmware's
# tables, at the end.
FIRST_BYTE = 8 * MIB
LAST_BYTE = RAM_BYTES - 8 * MIB

READ_AT = BALLOON.start + 0x5000
WRITTEN_AT = BALLOON.start + 0x9000
WORD = 0xC0FFEE


class Demo:
    """One run; each method is a step, in the order in which they are written."""

    def __init__(self, screen: Screen, guest: Guest) -> None:
        self._screen = screen
        self._guest = guest
        self._sum_before = 0
        self._stride_bytes = LINE_BYTES

    def run(self) -> None:
        self.fill()
        files = host.open_files(self._guest.pid)
        self._screen.step(f"Attach to pid {self._guest.pid}")
        with Manager(self._guest.pid, self._guest.qmp_path) as manager:
            self.attached(manager.status())
            self.inflate(manager)
            self.touch(manager)
            self.detach(manager, files)
        self.check_owned()
        self.use_again()

    def fill(self) -> None:
        self._screen.step("The guest fills its memory with a pattern")
        self._stride_bytes = self._choose_stride()
        for span in self._screen.track("filling", list(_slices(FIRST_BYTE, LAST_BYTE))):
            self._fill(span, seed=span.start)
        self._sum_before = self._sum_owned()
        self._screen.show(f"checksum of {self._what_is_summed()}: {self._sum_before:#x}")

    def _choose_stride(self) -> int:
        """Use every byte, or one line of every page where the guest is slow.

        Even under KVM it may be emulated instruction by instruction: paravirtual and nested
        hosts do that.
        """
        start = time.monotonic()
        self._fill(GpaRange.of(FIRST_BYTE, MIB), seed=0)
        return LINE_BYTES if time.monotonic() - start < QUICK_S else SPARSE_BYTES

    def _what_is_summed(self) -> str:
        every = "all" if self._stride_bytes == LINE_BYTES else f"{LINE_BYTES} bytes of every page"
        return f"{every} that it will keep"

    def _fill(self, span: GpaRange, seed: int) -> None:
        self._guest.console.fill(span, seed, stride_bytes=self._stride_bytes)

    def attached(self, status: dict[str, Any]) -> None:
        self._screen.claim(
            f"attached; userfaultfd obtained the {status['uffd_method']} way,"
            f" policy {status['policy']}",
            holds=status["pid"] == self._guest.pid,
        )
        tracer = host.tracer_of(self._guest.pid)
        self._screen.claim("nothing traces it any more", holds=tracer == 0)

    def inflate(self, manager: Manager) -> None:
        self._screen.step(f"The guest gives up 64 MiB at {BALLOON.start:#x}")
        resident = host.resident_bytes(self._guest.pid)
        grown = self._inflate_all(manager)
        ballooned = manager.status()["ballooned_bytes"]
        self._screen.claim(
            f"in the balloon: {_mib(ballooned)}", holds=ballooned == BALLOON.size_bytes
        )
        dropped = resident - host.resident_bytes(self._guest.pid)
        self._screen.claim(
            f"resident memory of the target: down by {_mib(dropped)}",
            holds=dropped >= ENOUGH_BYTES,
        )
        self._screen.claim(
            f"free on the host: up by {_mib(grown.total_bytes)}"
            f" (MemFree {_mib(grown.mem_free_bytes)},"
            f" free lists of the CPUs {_mib(grown.on_cpu_lists_bytes)})",
            holds=grown.total_bytes >= ENOUGH_BYTES,
        )

    def _inflate_all(self, manager: Manager) -> host.Free:
        """Inflate, and return how much more the host has free.

        Everything else on the machine moves that figure too. When that shows, the guest takes
        its memory back and gives it up again.
        """
        for attempt in range(ATTEMPTS):
            if attempt == 1:
                self._screen.show("other programs used or freed memory meanwhile: measuring again")
            if attempt:
                manager.deflate(BALLOON.start, BALLOON.size_bytes)
                self._fill(BALLOON, seed=attempt)
            before = host.Free.now()
            manager.inflate(BALLOON.start, BALLOON.size_bytes)
            grown = host.Free.now() - before
            if ENOUGH_BYTES <= grown.total_bytes <= TOO_MUCH_BYTES:
                break
        return grown

    def touch(self, manager: Manager) -> None:
        self._screen.step("The guest breaks its word")
        value = self._guest.console.read(READ_AT)
        self._screen.claim(f"it reads {READ_AT:#x} and sees {value}", holds=value == 0)
        self._show_violation(manager, READ_AT, "read")
        self._guest.console.write(WRITTEN_AT, WORD)
        back = self._guest.console.read(WRITTEN_AT)
        self._screen.claim(
            f"it writes {WORD:#x} to {WRITTEN_AT:#x} and reads back {back:#x}", holds=back == WORD
        )
        self._show_violation(manager, WRITTEN_AT, "write")

    def detach(self, manager: Manager, files_before: list[str]) -> None:
        self._screen.step("Detach")
        code = manager.detach()
        self._screen.claim(f"the manager ended with exit code {code}", holds=code == 0)
        left = [name for name in host.open_files(self._guest.pid) if name not in files_before]
        self._screen.claim(
            f"left behind in the target: {', '.join(left) or 'nothing'}", holds=not left
        )

    def check_owned(self) -> None:
        now = self._sum_owned()
        self._screen.claim(
            f"checksum of {self._what_is_summed()}: {now:#x}, as before",
            holds=now == self._sum_before,
        )

    def use_again(self) -> None:
        self._guest.console.ping()
        for span in _slices(BALLOON.start, BALLOON.end):
            self._fill(span, seed=1)
        self._screen.claim("the guest is alive and uses all of its memory again", holds=True)

    def _show_violation(self, manager: Manager, gpa: int, access: str) -> None:
        page = round_down(gpa, PAGE_BYTES)
        trapped = [
            event
            for event in manager.violations()
            if round_down(int(event["gpa"]), PAGE_BYTES) == page and event["access"] == access
        ]
        if not trapped:
            self._screen.claim(f"trapped and reported the {access} of {gpa:#x}", holds=False)
            return
        event = trapped[0]
        self._screen.claim(
            f"trapped: vCPU {event['vcpu']} made a {access} of gpa {int(event['gpa']):#x},"
            f" a {event['verdict']}; answered by {event['action']}",
            holds=event["vcpu"] == 0,
        )

    def _sum_owned(self) -> int:
        spans = [*_slices(FIRST_BYTE, BALLOON.start), *_slices(BALLOON.end, LAST_BYTE)]
        return _combine(
            self._guest.console.checksum(span, stride_bytes=self._stride_bytes)
            for span in self._screen.track("summing up", spans)
        )


def _slices(start: int, end: int) -> Iterable[GpaRange]:
    return (GpaRange.of(gpa, SLICE_BYTES) for gpa in range(start, end, SLICE_BYTES))


def _combine(sums: Iterable[int]) -> int:
    """Make one number of the sums of the slices, in which their order counts."""
    total = 0
    for value in sums:
        total = (total * 31 + value) % (1 << 64)
    return total


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / MIB:.1f} MiB"


def main() -> int:
    screen = Screen()
    try:
        put_right = HOST.put_right()
        with boot_linux(screen) as linux:
            if linux is not None:
                LinuxDemo(screen, linux).run()
                screen.say("\nAnd a guest that breaks its word, which Linux does not.")
        with boot() as guest:
            screen.say(guest.introduction)
            for line in put_right:
                screen.show(f"put right first: {line}")
            Demo(screen, guest).run()
    except (DemoError, UffdballoonError) as error:
        screen.claim(str(error), holds=False)
    except KeyboardInterrupt:
        screen.say("\nInterrupted; everything is let go.")
        return 130
    if screen.failures:
        screen.say(f"\nThe demo failed: {len(screen.failures)} of its claims did not hold.")
        return 1
    screen.say("\nAll of it held.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
