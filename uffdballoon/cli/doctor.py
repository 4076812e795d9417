# SPDX-License-Identifier: GPL-2.0-or-later
"""Tell what this host can do, and what to do about what it cannot."""

from __future__ import annotations

import dataclasses
import errno
from typing import TYPE_CHECKING, Any

import click

from uffdballoon.cli.output import print_json, print_table
from uffdballoon.cli.types import PID
from uffdballoon.errors import ExitCode, TargetBusyError, UnsupportedError
from uffdballoon.host.probes import Probe, probe_host
from uffdballoon.session import look_at
from uffdballoon.target.process import Target
from uffdballoon.vmm.qemu.suitability import gather, judge

if TYPE_CHECKING:
    from uffdballoon.vmm.qemu.suitability import Finding

_CAP_SYS_PTRACE = 1 << 19


@click.command()
@click.option("--pid", type=PID, help="Say also what stands in the way of attaching to it.")
@click.option("--json", "as_json", is_flag=True)
def doctor(pid: int | None, *, as_json: bool) -> int:
    """Say what works here, and for each lack what to do.

    Ends with 0 when the main job can be done, else 3 (permission) or 4 (this kernel cannot).
    """
    probes = sorted(probe_host(), key=lambda probe: (probe.ok, not probe.essential))
    probes += _target_probes(pid) if pid is not None else []
    code = _verdict(probes)
    if as_json:
        print_json({"exit_code": int(code), "probes": [dataclasses.asdict(p) for p in probes]})
        return int(code)
    print_table(("", "what", "found", "what to do"), [_row(probe) for probe in probes])
    click.echo("The main job can be done." if code is ExitCode.DONE else "Cannot attach yet.")
    return int(code)


def _row(probe: Probe) -> tuple[str, str, str, str]:
    mark = "ok" if probe.ok else "NO" if probe.essential else "no"
    return mark, probe.name, probe.detail, "" if probe.ok else probe.fix


def _verdict(probes: list[Probe]) -> ExitCode:
    lacking = [probe for probe in probes if probe.essential and not probe.ok]
    opened = {p.name: p for p in probes if p.name in ("userfaultfd(2)", "/dev/userfaultfd")}
    if not any(probe.ok for probe in opened.values()):
        lacking += opened.values()
    if not lacking:
        return ExitCode.DONE
    denied = all(probe.errno in (errno.EPERM, errno.EACCES) for probe in lacking)
    return ExitCode.PERMISSION if denied else ExitCode.UNSUPPORTED


def _target_probes(pid: int) -> list[Probe]:
    with Target.open(pid) as target:
        confined = target.confinement()
        busy: Any = None
        try:
            target.refuse_if_busy()
        except TargetBusyError as error:
            busy = error
        unsuitable = _unsuitable(target)
    privileged = bool(confined.capabilities & _CAP_SYS_PTRACE)
    return [
        Probe(
            f"{pid}: tracer",
            not confined.tracer_pid,
            f"traced by {confined.tracer_pid}" if confined.tracer_pid else "none",
            fix=f"end or detach process {confined.tracer_pid}",
            essential=True,
        ),
        Probe(
            f"{pid}: shadow stack",
            not confined.shadow_stack,
            fix="start QEMU with GLIBC_TUNABLES=glibc.cpu.x86_shstk=off",
            essential=True,
        ),
        Probe(
            f"{pid}: its own userfaultfd",
            busy is None,
            busy.why if busy else "none in use",
            fix=busy.hint if busy else "",
            essential=True,
        ),
        Probe(
            f"{pid}: userfaultfd by",
            ok=True,
            detail="direct" if privileged else "passed (it has no CAP_SYS_PTRACE)",
        ),
        Probe(
            f"{pid}: confinement",
            ok=True,
            detail=f"uid {confined.uid}, seccomp {'on' if confined.seccomp else 'off'}, "
            f"other namespaces: {', '.join(confined.foreign_namespaces) or 'none'}",
        ),
        *(
            Probe(
                f"{pid}: {finding.name}",
                ok=False,
                detail=finding.sentence,
                fix=f"take it from the guest, or attach with --allow {finding.name}"
                if finding.refuses
                else "",
                essential=finding.refuses,
            )
            for finding in unsuitable
        ),
    ]


def _unsuitable(target: Target) -> list[Finding]:
    try:
        return look_at(target, None).unsuitable
    except UnsupportedError:  # its RAM cannot be told without the monitor; the rest can
        return judge(gather(target))
