# SPDX-License-Identifier: GPL-2.0-or-later
"""VMs by their names: what the command line calls one, and which process a name means."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
from typing import TYPE_CHECKING, NamedTuple

from uffdballoon.errors import UsageError
from uffdballoon.model.printable import printable
from uffdballoon.target.process import list_targets
from uffdballoon.vmm.qemu.options import parse_options

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_EXACT = re.compile(r"(pid|name|id):(.*)", re.DOTALL)
_NUMBER = re.compile(r"[0-9]{1,20}", re.ASCII)
_MOST_PID = (1 << 22) - 1  # proc_sys_kernel(5): pid_max is 2^22 at most
_MOST_NAMED = 5
"""Of those that a refusal lists."""
_LEAST_LIKE = 0.5


class Names(NamedTuple):
    """What a VM is called: ``name`` by -name, ``number`` by Proxmox' -id; empty without one."""

    name: str
    number: str

    @property
    def shown(self) -> str:
        """The name as a terminal may be shown it, or the number; empty without both."""
        return printable(self.name or self.number)


class Named(NamedTuple):
    """A QEMU that runs, and what it is called."""

    pid: int
    names: Names

    def __str__(self) -> str:
        return f"{self.names.shown or 'no name'} (pid {self.pid})"


def names_of(cmdline: Sequence[str]) -> Names:
    """Read the names on a command line, its program's name included.

    The last one counts (QEMU, system/vl.c: the options of -name are merged). Whoever started
    the VM may have let its owner choose: it is text of anybody's, of any length.
    """
    name = number = ""
    for option in parse_options(cmdline[1:]):
        if option.name == "name":
            name = option.values.get("guest", name)
        elif option.name == "id":
            number = option.text
    return Names(name, number)


def running_vms() -> list[Named]:
    """List the QEMUs of this host that may be looked at, by their pids."""
    with contextlib.ExitStack() as opened:
        targets = [opened.enter_context(target) for target in list_targets()]
        return [Named(target.pid, names_of(target.cmdline)) for target in targets]


def resolve(
    text: str,
    running: Callable[[], Sequence[Named]] = running_vms,
    *,
    say: Callable[[str], None] = lambda _: None,
) -> int:
    """Return the pid that ``text`` means: a pid, a name, or an id of Proxmox'.

    A number is a pid where a process has it. ``pid:``, ``name:`` and ``id:`` before it leave
    nothing open. Whether a process of that pid is there is for others to find out. Raises
    UsageError.
    """
    exact = _EXACT.fullmatch(text)
    kind, rest = (exact[1], exact[2]) if exact is not None else ("", text)
    if not rest:
        raise UsageError(
            "no VM was named",
            why=f"{_quoted(text)} is neither a pid nor a name",
            hint="give a pid or a name that `uffdballoon list` shows",
        )
    if kind == "pid":
        if (pid := _pid_of(rest)) is None:
            raise UsageError(
                f"{_quoted(text)} is no pid",
                why=f"a pid is a number from 1 to {_MOST_PID}",
                hint="give a pid that `uffdballoon list` shows",
            )
        return pid
    vms = running()
    called = [vm for vm in vms if _is_called(vm, kind, rest)]
    if not kind and (pid := _pid_of(text)) is not None:
        there = any(vm.pid == pid for vm in vms)
        if there or not called or _is_process(pid):
            _tell_apart(pid, called, is_vm=there, say=say)
            return pid
    return _only(called, text, vms)


def _is_called(vm: Named, kind: str, text: str) -> bool:
    if kind != "id" and vm.names.name == text:
        return True
    return kind != "name" and vm.names.number == text


def _pid_of(text: str) -> int | None:
    if not _NUMBER.fullmatch(text) or not 0 < int(text) <= _MOST_PID:
        return None
    return int(text)


def _is_process(pid: int) -> bool:
    try:
        os.close(os.pidfd_open(pid))
    except OSError:
        return False
    return True


def _tell_apart(
    pid: int, called: Sequence[Named], *, is_vm: bool, say: Callable[[str], None]
) -> None:
    """Say that a number, taken as a pid, is a VM's name as well; refuse where it cannot be meant.

    Low ids of Proxmox' are pids of the kernel's own threads.
    """
    others = [vm for vm in called if vm.pid != pid]
    if not others:
        return
    exact = f"{'name' if others[0].names.name == str(pid) else 'id'}:{pid}"
    whose = f"{', '.join(f'process {vm.pid}' for vm in others[:_MOST_NAMED])} is called {pid}, too"
    if not is_vm:
        raise UsageError(
            f"process {pid} is no QEMU",
            why=f"a number is a pid where a process has it, and {whose}",
            hint=f"for the VM of that name, give {exact}",
            pid=pid,
        )
    say(f"{pid} is taken as a pid; {whose}: for that one, give {exact}")


def _only(called: Sequence[Named], text: str, vms: Sequence[Named]) -> int:
    if len(called) == 1:
        return called[0].pid
    if called:
        pids = ", ".join(str(vm.pid) for vm in called)
        raise UsageError(
            f"{_quoted(text)} is the name of {len(called)} VMs",
            why=f"their pids are {pids}",
            hint="give the pid of the one that is meant",
        )
    near = _near(text, vms)
    raise UsageError(
        f"no VM is called {_quoted(text)}",
        why=f"the nearest: {', '.join(map(str, near))}" if near else "no QEMU here has that name",
        hint="`uffdballoon list` shows the VMs that can be attached to",
    )


def _near(text: str, vms: Sequence[Named]) -> list[Named]:
    """Find the VMs whose names are most like it."""
    by_name: dict[str, list[Named]] = {}
    for vm in vms:
        for name in filter(None, vm.names):
            by_name.setdefault(name[:256].lower(), []).append(vm)
    asked = text.rpartition(":")[2][:256].lower()
    like = difflib.get_close_matches(asked, by_name, n=_MOST_NAMED, cutoff=_LEAST_LIKE)
    found = [vm for name in like for vm in by_name[name]]
    return list(dict.fromkeys(found))[:_MOST_NAMED]


def _quoted(text: str) -> str:
    return f"'{printable(text)}'"
