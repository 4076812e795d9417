# SPDX-License-Identifier: GPL-2.0-or-later
"""Run commands in the Linux guest over its serial port (native/guestwork/README.md)."""

from __future__ import annotations

import re
import secrets
import select
import socket
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from uffdballoon.errors import GuestSilentError, LabError

if TYPE_CHECKING:
    from pathlib import Path

ANSWER_TIMEOUT_S = 60.0
"""Far more than any answer takes on a machine that is merely busy."""

BOOT_TIMEOUT_S = 180.0

_HELLO = "guestwork"
_PING_PERIOD_S = 1.0
_MAX_COMMAND_BYTES = 3500
_NEXT_KERNEL = "/boot/vmlinuz /boot/initramfs"
_KIB = 1024


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command ended: its status, 128 + N for signal N, and all that it wrote."""

    status: int
    output: str


@dataclass(slots=True)
class Answer:
    """What has come of a command so far."""

    output: list[str] = field(default_factory=list)
    unread: deque[str] = field(default_factory=deque)
    line: str = ""
    status: int | None = None
    refusal: str | None = None

    def take(self, kind: str, text: str) -> None:
        match kind:
            case "+" | "-":
                end = "\n" if kind == "+" else ""
                self.output.append(text + end)
                self.line += text
                if end:
                    self.unread.append(self.line)
                    self.line = ""
            case "=":
                self.status = int(text)
            case "!":
                self.refusal = text

    @property
    def ended(self) -> bool:
        return self.status is not None or self.refusal is not None


class PendingCommand:
    """A command that runs in the guest; any number of them run beside each other."""

    def __init__(self, guest: LinuxGuest, command: str, token: str, answer: Answer) -> None:
        self.command = command
        self._guest = guest
        self._token = token
        self._answer = answer

    def is_there(self, timeout_s: float = 0.0) -> bool:
        """Tell whether the command ended within so long; wait() then returns at once."""
        return self._guest.has_ended(self._answer, timeout_s)

    def wait(self, timeout_s: float = ANSWER_TIMEOUT_S) -> Ran:
        """Return how it ended; raise GuestSilentError when it does not, LabError on refusal."""
        deadline = time.monotonic() + timeout_s
        answer = self._answer
        while not answer.ended:
            self._guest.receive(self.command, deadline)
        if answer.refusal is not None:
            raise LabError(f"The guest cannot run `{self.command}`", why=answer.refusal)
        assert answer.status is not None
        return Ran(answer.status, "".join(answer.output))

    def read_line(self, timeout_s: float = ANSWER_TIMEOUT_S) -> str:
        """Return the next whole line of its output, waiting for it if need be.

        Raises LabError when the command ended without one.
        """
        deadline = time.monotonic() + timeout_s
        answer = self._answer
        while not answer.unread:
            if answer.ended:
                raise LabError(
                    f"`{self.command}` ended in the guest and wrote no other line",
                    why=answer.refusal or f"status {answer.status}",
                )
            self._guest.receive(self.command, deadline)
        return answer.unread.popleft()

    def send_line(self, text: str = "") -> None:
        """Write a line to its standard input; it was started by talk()."""
        self._guest.send("say", self._token, text)

    def kill(self) -> None:
        """Kill it, and what it started."""
        self._guest.send("kill", self._token)


class LinuxGuest:
    """Client of one guest, for use by one thread.

    Methods raise GuestSilentError when the guest does not answer in time, LabError when it
    refuses. ``kernel_log_path`` is where QEMU writes what the kernel says.
    """

    def __init__(self, console_path: Path, kernel_log_path: Path) -> None:
        self._kernel_log_path = kernel_log_path
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(console_path))
        self._received = b""
        self._answers: dict[str, Answer] = {}
        self._boot = self._last_hello = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def wait_until_up(self, timeout_s: float = BOOT_TIMEOUT_S) -> None:
        """Wait until the guest answers."""
        token, answer = self._expect_answer()
        deadline = time.monotonic() + timeout_s
        while True:
            # What is sent before the guest set up its port is lost, so it is sent again.
            self._socket.sendall(f"\nping {token}\n".encode())
            if self.has_ended(answer, _PING_PERIOD_S):
                break
            if time.monotonic() > deadline:
                raise self._silence("ping", "it did not boot, or is held up")
        self._boot = self._last_hello = self.check("cat /proc/sys/kernel/random/boot_id").strip()

    def wait_for_boot(self, timeout_s: float = BOOT_TIMEOUT_S) -> None:
        """Wait until the guest has booted once more, after a reset that somebody else made."""
        deadline = time.monotonic() + timeout_s
        while self._last_hello == self._boot:
            self.receive("boot", deadline)
        for answer in self._answers.values():
            answer.take("!", "the guest was reset")
        self._answers.clear()
        self.wait_until_up(deadline - time.monotonic())

    def run(self, command: str, timeout_s: float = ANSWER_TIMEOUT_S) -> Ran:
        """Run a command of the shell and wait for its end, whatever its status."""
        return self.start(command).wait(timeout_s)

    def check(self, command: str, timeout_s: float = ANSWER_TIMEOUT_S) -> str:
        """Run a command and return its output; raise LabError when its status is not 0."""
        ran = self.run(command, timeout_s)
        if ran.status:
            raise LabError(
                f"`{command}` failed in the guest",
                why=f"status {ran.status}: {ran.output.strip()}",
            )
        return ran.output

    def start(self, command: str) -> PendingCommand:
        """Start a command of the shell, its standard input empty."""
        return self._start("run", command)

    def talk(self, command: str) -> PendingCommand:
        """Start a command that reads what send_line() gives it."""
        return self._start("talk", command)

    def memory_info(self) -> dict[str, int]:
        """Return the guest's /proc/meminfo, in bytes but for what counts pages."""
        found = re.findall(r"(\S+):\s+(\d+)( kB)?", self.check("cat /proc/meminfo"))
        return {name: int(value) * (_KIB if unit else 1) for name, value, unit in found}

    def load_balloon_driver(self) -> None:
        self.check("insmod /lib/modules/virtio_balloon.ko")

    def unload_balloon_driver(self) -> None:
        """Unload the driver; it takes back all that is in the balloon."""
        self.check("rmmod virtio_balloon")

    def reboot(self, timeout_s: float = BOOT_TIMEOUT_S) -> None:
        """Reboot, and wait until the guest is up again."""
        self.start("reboot -f")
        self.wait_for_boot(timeout_s)

    def kexec(self, timeout_s: float = BOOT_TIMEOUT_S) -> None:
        """Start the kernel at hand from the one that runs, and wait until that is up."""
        self.start(f"guestwork kexec now {_NEXT_KERNEL} $(cat /proc/cmdline)")
        self.wait_for_boot(timeout_s)

    def crash_into_next_kernel(self, timeout_s: float = BOOT_TIMEOUT_S) -> None:
        """Crash the kernel, and wait until the one at hand is up, beside what the first has left.

        What that is can be read from its /proc/vmcore. It has little memory, and no balloon driver,
        which would give that up.
        """
        arguments = "$(sed 's/crashkernel=[^ ]*//' /proc/cmdline) nodrivers"
        self.check(f"guestwork kexec crash {_NEXT_KERNEL} {arguments}")
        self.panic()
        self.wait_for_boot(timeout_s)

    def panic(self) -> None:
        """Crash the kernel."""
        self.start("echo c > /proc/sysrq-trigger")

    def power_off(self) -> None:
        """Have the guest end the machine; QEMU ends soon after."""
        self.start("poweroff -f")

    def kernel_log(self) -> str:
        """Return what the kernel wrote to its console, of all boots; works on a dead guest."""
        return self._kernel_log_path.read_text(errors="replace")

    def has_ended(self, answer: Answer, timeout_s: float) -> bool:
        """Tell whether a command ended, or QEMU did, within so long."""
        deadline = time.monotonic() + timeout_s
        while not answer.ended:
            left_s = max(deadline - time.monotonic(), 0)
            if not select.select([self._socket], [], [], left_s)[0]:
                return False
            if not self._take_in():
                return True
        return True

    def receive(self, command: str, deadline: float) -> None:
        """Take in what comes next, of whatever command; silence is told as ``command``'s."""
        left_s = max(deadline - time.monotonic(), 0)
        if not select.select([self._socket], [], [], left_s)[0]:
            raise self._silence(command, "it is held up, or is still busy")
        if not self._take_in():
            raise self._silence(command, "its QEMU has ended")

    def send(self, *words: str) -> None:
        """Send a line of the protocol."""
        line = " ".join(words)
        encoded = line.encode()
        if "\n" in line or len(encoded) > _MAX_COMMAND_BYTES:
            raise LabError(
                "The guest takes commands of one line only",
                why=f"at most {_MAX_COMMAND_BYTES} bytes, no newline",
                hint="separate commands with semicolons",
            )
        self._socket.sendall(encoded + b"\n")

    def _start(self, verb: str, command: str) -> PendingCommand:
        token, answer = self._expect_answer()
        self.send(verb, token, command)
        return PendingCommand(self, command, token, answer)

    def _expect_answer(self) -> tuple[str, Answer]:
        token, answer = secrets.token_hex(8), Answer()
        self._answers[token] = answer
        return token, answer

    def _take_in(self) -> bool:
        """Read what has come, and sort it by command; tell whether QEMU is still there."""
        try:
            data = self._socket.recv(65536)
        except ConnectionError:
            data = b""
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            whose, _, rest = line.decode(errors="replace").partition(" ")
            kind, _, text = rest.partition(" ")
            if whose == _HELLO and kind == "*":
                self._last_hello = text
            elif whose in self._answers:
                self._answers[whose].take(kind, text)
                if self._answers[whose].ended:
                    del self._answers[whose]
        return bool(data)

    @staticmethod
    def _silence(command: str, why: str) -> GuestSilentError:
        return GuestSilentError(f"The guest does not answer `{command}`", why=why)
