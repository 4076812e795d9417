# SPDX-License-Identifier: GPL-2.0-or-later
"""Talk to the micro-guest over its serial console (native/microguest/README.md)."""

from __future__ import annotations

import re
import secrets
import select
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from uffdballoon.errors import GuestSilentError, LabError
from uffdballoon.lab.built import find_built
from uffdballoon.model.addresses import PAGE_BYTES, Gpa, GpaRange
from uffdballoon.model.touch import Access

if TYPE_CHECKING:
    from pathlib import Path

FREE_FROM = Gpa(2 << 20)
"""The guest itself uses memory below this address only."""

PATTERN_LINE_BYTES = 64
"""Fill, verify and checksum work on lines of this size."""

ANSWER_TIMEOUT_S = 60.0
"""Far more than any answer takes on a machine that is merely busy."""

_NEEDS = "gcc, make and binutils on an x86-64 machine"
_MASK = 0xFFFFFFFF


def find_elf() -> Path:
    """Find the guest's image, or build it when this is a source checkout.

    Looks at UFFDBALLOON_MICROGUEST, at the checkout, at the installed package. Raises
    LabError when there is none.
    """
    return find_built("microguest.elf", "microguest", "UFFDBALLOON_MICROGUEST", _NEEDS)


@dataclass(frozen=True, slots=True)
class Check:
    """How many lines of a pattern are not as they were written, and where the first is."""

    bad_lines: int
    first_bad: Gpa | None


@dataclass(frozen=True, slots=True)
class Touches:
    """How many touches there were, and how many cycles of the guest's TSC each took."""

    count: int
    min_cycles: int
    avg_cycles: int
    max_cycles: int


@dataclass(frozen=True, slots=True)
class Race:
    """In how many places both processors were at once, and how many are not as both left them."""

    count: int
    bad: int
    first_bad: Gpa | None = None


@dataclass(frozen=True, slots=True)
class SecondState:
    """Whether the second processor is at work, and how many touches it has completed."""

    busy: bool
    done: int


class PendingAnswer:
    """The answer to a command that was sent and may take its time."""

    def __init__(self, guest: MicroGuest, command: str) -> None:
        self._guest = guest
        self._command = command

    def is_there(self, timeout_s: float = 0.0) -> bool:
        """Tell whether the answer came within so long; wait() then returns at once."""
        return self._guest.has_answered(timeout_s)

    def wait(self, timeout_s: float = ANSWER_TIMEOUT_S) -> str:
        """Return what follows `ok`; raise LabError on `err`, GuestSilentError on silence."""
        return self._guest.receive(self._command, timeout_s)


class MicroGuest:
    """Client of one guest's console; one command at a time.

    Sizes and addresses are in bytes. Every method raises GuestSilentError when the guest
    does not answer in time, LabError when it refuses.
    """

    def __init__(self, console_path: str | Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(console_path))
        self._received = b""
        self._in_step = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def wait_until_up(self, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        """Wait until the guest answers, and drop all that it said to others or before."""
        token = secrets.randbits(32)
        # The guest loses the first byte when it was sent before the guest set up its UART.
        self._socket.sendall(f"\nping {token:x}\n".encode())
        self._wait_for(f"ok pong token={token:#x}", "ping", timeout_s)
        self._in_step = True

    def command(self, text: str, timeout_s: float = ANSWER_TIMEOUT_S) -> str:
        """Run a command and return what follows `ok` in its answer."""
        return self.start(text).wait(timeout_s)

    def start(self, text: str) -> PendingAnswer:
        """Send a command whose answer is waited for later."""
        if not self._in_step:
            self.wait_until_up()
        self._in_step = False
        self._socket.sendall(f"{text}\n".encode())
        return PendingAnswer(self, text)

    def has_answered(self, timeout_s: float) -> bool:
        """Tell whether a line, or the end of QEMU, is there to be received within so long."""
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._received:
            left_s = max(deadline - time.monotonic(), 0)
            if not select.select([self._socket], [], [], left_s)[0]:
                return False
            try:
                data = self._socket.recv(4096)
            except ConnectionError:
                data = b""
            if not data:
                return True
            self._received += data
        return True

    def receive(self, command: str, timeout_s: float) -> str:
        """Read the answer to ``command``, the last that was sent."""
        line = self._read_line(command, time.monotonic() + timeout_s)
        self._in_step = True
        status, _, rest = line.partition(" ")
        if status == "ok":
            return rest
        raise LabError(
            f"The guest refused `{command}`",
            why=rest,
            hint="native/microguest/README.md lists the commands",
        )

    def ping(self, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        """Have the guest answer."""
        self.command("ping", timeout_s)

    def read(self, gpa: int) -> int:
        """Read 32 bits."""
        return _number(self.command(f"read {gpa:x}"), "value")

    def write(self, gpa: int, value: int) -> None:
        """Write 32 bits."""
        self.command(f"write {gpa:x} {value:x}")

    def fill(self, span: GpaRange, seed: int, *, stride_bytes: int = PATTERN_LINE_BYTES) -> None:
        """Write the pattern of ``seed``: a line of 64 bytes at every stride."""
        self.command(f"fill {_words(span)} {seed:x} {stride_bytes:x}")

    def verify(self, span: GpaRange, seed: int, *, stride_bytes: int = PATTERN_LINE_BYTES) -> Check:
        """Look for lines that are not as ``fill`` with the same arguments left them."""
        answer = self.command(f"verify {_words(span)} {seed:x} {stride_bytes:x}")
        bad_lines = _number(answer, "bad")
        return Check(bad_lines, Gpa(_number(answer, "first")) if bad_lines else None)

    def checksum(self, span: GpaRange, *, stride_bytes: int = PATTERN_LINE_BYTES) -> int:
        """Sum up the line of 64 bytes at every stride; places count as values do."""
        return _number(self.command(f"checksum {_words(span)} {stride_bytes:x}"), "sum")

    def touch(
        self,
        span: GpaRange,
        access: Access,
        *,
        stride_bytes: int = PAGE_BYTES,
        record_gpa: int | None = None,
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> Touches:
        """Access one word at every stride; a write stores the low half of its address.

        With ``record_gpa`` the guest stores there, as 32 bits each, the cycles of every touch.
        """
        pending = self.start_touch(span, access, stride_bytes=stride_bytes, record_gpa=record_gpa)
        return pending.wait(timeout_s)

    def start_touch(
        self,
        span: GpaRange,
        access: Access,
        *,
        stride_bytes: int = PAGE_BYTES,
        record_gpa: int | None = None,
    ) -> PendingTouches:
        """Begin a touch that may be held up."""
        record = "" if record_gpa is None else f" {record_gpa:x}"
        return PendingTouches(
            self.start(f"touch {_touch_words(span, access, stride_bytes)}{record}")
        )

    def touch_on_second(
        self,
        span: GpaRange,
        access: Access,
        *,
        stride_bytes: int = PAGE_BYTES,
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> Touches:
        """Touch as ``touch`` does, on the second processor while the first waits."""
        words = _touch_words(span, access, stride_bytes)
        return _touches(self.command(f"ap touch {words}", timeout_s))

    def start_on_second(
        self, span: GpaRange, access: Access, *, stride_bytes: int = PAGE_BYTES
    ) -> None:
        """Begin a touch on the second processor; the first goes on answering."""
        self.command(f"ap start {_touch_words(span, access, stride_bytes)}")

    def second_state(self) -> SecondState:
        """Look how far the second processor is."""
        answer = self.command("ap state")
        return SecondState(bool(_number(answer, "busy")), _number(answer, "done"))

    def wait_for_second(self, timeout_s: float = ANSWER_TIMEOUT_S) -> Touches:
        """Wait, the first processor with it, until the second has done what it was given."""
        return _touches(self.command("ap wait", timeout_s))

    def race(
        self,
        span: GpaRange,
        access: Access,
        *,
        stride_bytes: int = PAGE_BYTES,
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> Race:
        """Have both processors access the same place at once, at every stride.

        Both read the same word, and it is bad when they read different values; or each writes
        a word of its own, and it is bad when one is lost. The stride is whole lines of 64 bytes.
        """
        words = _touch_words(span, access, stride_bytes)
        answer = self.command(f"race {words}", timeout_s)
        bad = _number(answer, "bad")
        return Race(_number(answer, "count"), bad, Gpa(_number(answer, "first")) if bad else None)

    def set_interrupts(self, *, on: bool) -> None:
        """Have the guest run its commands with interrupts enabled, on both processors.

        KVM takes page faults asynchronously only then.
        """
        self.command(f"interrupts {'on' if on else 'off'}")

    def balloon_inflate(
        self, span: GpaRange, *, stride_bytes: int = PAGE_BYTES, together: int = 256
    ) -> int:
        """Give pages up through the virtio-balloon device; return the pages in the balloon.

        With a stride, as many pages as ``span`` holds, one at every stride from its start.
        ``together`` pages are in one buffer; QEMU gives up a huge page only when all of it is.
        """
        return self._balloon("inflate", span, stride_bytes, together)

    def balloon_deflate(self, span: GpaRange, *, stride_bytes: int = PAGE_BYTES) -> int:
        """Take pages back through the virtio-balloon device; return the pages in the balloon."""
        return self._balloon("deflate", span, stride_bytes)

    def _balloon(self, verb: str, span: GpaRange, stride_bytes: int, together: int = 256) -> int:
        pages = span.size_bytes // PAGE_BYTES
        words = f"{span.start:x} {pages:x} {stride_bytes:x} {together:x}"
        return _number(self.command(f"balloon {verb} {words}"), "actual")

    def memory_map(self) -> list[GpaRange]:
        """Return the stretches of RAM that the firmware told of."""
        found = re.findall(r"ram=(0x[0-9a-f]+)-(0x[0-9a-f]+)", self.command("mem"))
        return [GpaRange(Gpa(int(start, 16)), Gpa(int(end, 16))) for start, end in found]

    def halt(self) -> None:
        """Stop the guest's processor for good; the machine goes on."""
        self.command("halt")

    def reset(self) -> None:
        """Reset the machine, and wait until the guest is up again."""
        self.command("reset")
        self.wait_for_boot()

    def wait_for_boot(self) -> None:
        """Wait until it is up again after a reset, by whomever."""
        # Its first words after the boot: whatever is sent before is lost in the reset.
        self._wait_for("microguest 1", "reset", ANSWER_TIMEOUT_S)
        self.wait_until_up()

    def power_off(self) -> None:
        """End the machine."""
        self.command("poweroff")

    def _wait_for(self, wanted: str, command: str, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while self._read_line(command, deadline) != wanted:
            pass

    def _read_line(self, command: str, deadline: float) -> str:
        while b"\n" not in self._received:
            self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                data = self._socket.recv(4096)
            except TimeoutError:
                raise self._silence(command, "it is held up, or is still busy") from None
            except ConnectionError:
                data = b""
            if not data:
                raise self._silence(command, "its QEMU has ended")
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return line.decode("ascii", "replace").lstrip("> ").rstrip("\r")

    @staticmethod
    def _silence(command: str, why: str) -> GuestSilentError:
        return GuestSilentError(f"The guest does not answer `{command}`", why=why)


class PendingTouches:
    """The answer to a touch that may be held up."""

    def __init__(self, answer: PendingAnswer) -> None:
        self._answer = answer

    def is_there(self, timeout_s: float = 0.0) -> bool:
        """Tell whether the touches were done within so long."""
        return self._answer.is_there(timeout_s)

    def wait(self, timeout_s: float = ANSWER_TIMEOUT_S) -> Touches:
        return _touches(self._answer.wait(timeout_s))


def pattern_words(gpa: int, seed: int) -> tuple[int, int, int, int]:
    """Compute the first four 32-bit words of the pattern's line at ``gpa``; it repeats them."""
    base = (gpa // PATTERN_LINE_BYTES * 0x9E3779B1 + seed) & _MASK
    return base, base ^ _MASK, base ^ 0x55555555, base


def _words(span: GpaRange) -> str:
    return f"{span.start:x} {span.size_bytes:x}"


def _touch_words(span: GpaRange, access: Access, stride_bytes: int) -> str:
    letter = "w" if access is Access.WRITE else "r"
    return f"{_words(span)} {stride_bytes:x} {letter}"


def _touches(answer: str) -> Touches:
    return Touches(*(_number(answer, name) for name in ("count", "min", "avg", "max")))


def _number(answer: str, name: str) -> int:
    found = re.search(rf"\b{name}=(0x[0-9a-f]+)", answer)
    if found is None:
        raise LabError(f"The guest's answer has no {name!r}", why=repr(answer))
    return int(found[1], 16)
