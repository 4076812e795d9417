# SPDX-License-Identifier: GPL-2.0-or-later
"""Tell what this host can do, and what to do about what it cannot."""

from __future__ import annotations

import dataclasses
import errno
from typing import TYPE_CHECKING

import click

from uffdballoon.cli.output import print_json, print_table
from uffdballoon.cli.types import PID
from uffdballoon.errors import ExitCode, UffdballoonError, UnsupportedError
from uffdballoon.host.jobs import ATTACH
from uffdballoon.host.privileges import Capability, with_lacking
from uffdballoon.host.probes import (
    ATTACH_TO_OWN,
    Probe,
    job_name,
    may_use_userfaultfd,
    probe_host,
)
from uffdballoon.host.uffd import DEVICE
from uffdballoon.model.records.host import DoctorReport, ProbeFacts
from uffdballoon.session import look_at
from uffdballoon.target.process import Target
from uffdballoon.target.readiness import refuse_unless_ready
from uffdballoon.target.seccomp import ZAPS, Permits, look_at_filters
from uffdballoon.vmm.qemu.suitability import gather, judge
from uffdballoon.vmm.qemu.threads import find_rcu_thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from uffdballoon.target.process import Confinement
    from uffdballoon.vmm.qemu.suitability import Finding

_CAP_SYS_PTRACE = 1 << 19
_ATTACH_TO_OTHERS = job_name(ATTACH)


@click.command()
@click.option("--pid", type=PID, help="Say also what stands in the way of attaching to it.")
@click.option("--json", "as_json", is_flag=True)
def doctor(pid: int | None, *, as_json: bool) -> int:
    """Say what works here, and for each lack what to do.

    Ends with 0 when the main job can be done, else 3 (permission) or 4 (this kernel cannot).
    """
    probes = sorted(probe_host(), key=lambda probe: (probe.ok, not probe.essential))
    probes += _target_probes(pid) if pid is not None else []
    code = _verdict(probes, of_one=pid is not None)
    if as_json:
        found = tuple(ProbeFacts(**dataclasses.asdict(probe)) for probe in probes)
        print_json(DoctorReport(exit_code=code, probes=found))
        return int(code)
    print_table(("", "what", "found", "what to do"), [_row(probe) for probe in probes])
    click.echo(_sum_up(probes, code, of_one=pid is not None))
    return int(code)


def _row(probe: Probe) -> tuple[str, str, str, str]:
    mark = "ok" if probe.ok else "NO" if probe.essential else "no"
    return mark, probe.name, probe.detail, "" if probe.ok else probe.fix


def _sum_up(probes: list[Probe], code: ExitCode, *, of_one: bool) -> str:
    if code is not ExitCode.DONE:
        return "Cannot attach yet."
    (others,) = [probe for probe in probes if probe.name == _ATTACH_TO_OTHERS]
    if not others.ok and not of_one:
        return f"The main job can be done for QEMUs of this user alone: {others.detail}."
    return "The main job can be done."


def _verdict(probes: list[Probe], *, of_one: bool) -> ExitCode:
    lacking = [probe for probe in probes if probe.essential and not probe.ok]
    attaches = [probe for probe in probes if probe.name in (ATTACH_TO_OWN, _ATTACH_TO_OTHERS)]
    if not of_one and not any(probe.ok for probe in attaches):
        lacking += attaches
    opened = {p.name: p for p in probes if p.name in ("userfaultfd(2)", "/dev/userfaultfd")}
    if not any(probe.ok for probe in opened.values()):
        lacking += opened.values()
    if not lacking:
        return ExitCode.DONE
    denied = all(probe.errno in (errno.EPERM, errno.EACCES) for probe in lacking)
    return ExitCode.PERMISSION if denied else ExitCode.UNSUPPORTED


def _target_probes(pid: int) -> list[Probe]:
    with Target.open(pid) as target:
        refused = target.access_refused()
        access = Probe(
            f"{pid}: access",
            not refused,
            f"refused: {', '.join(refused)}" if refused else "",
            errno=errno.EACCES if refused else None,
            fix=with_lacking(Capability.SYS_PTRACE, Capability.DAC_READ_SEARCH),
            essential=True,
        )
        return [access] if refused else [access, *_looks(target)]


def _looks(target: Target) -> list[Probe]:
    pid = target.pid
    confined = target.confinement()
    ready = _refusal(lambda: refuse_unless_ready(pid))
    busy = _refusal(target.refuse_if_busy)
    unsuitable = _unsuitable(target)
    permits: Permits | None = None
    unlooked: UffdballoonError | None = None
    if ready is None:
        try:
            idle = find_rcu_thread(target).thread
            permits = look_at_filters(pid, target.pidfd, (idle.tid, pid) if idle else (pid,))
            permits.refuse_unless_any(pid)
        except UffdballoonError as error:
            unlooked = error
    return [
        Probe(
            f"{pid}: can be stopped for a moment",
            ready is None,
            ready.why if ready else "neither traced nor frozen",
            fix=ready.hint if ready else "",
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
        *([] if ready else _filter_probes(pid, confined, permits, unlooked)),
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


def _refusal(ask: Callable[[], None]) -> UffdballoonError | None:
    try:
        ask()
    except UffdballoonError as error:
        return error
    return None


def _filter_probes(
    pid: int, confined: Confinement, permits: Permits | None, unlooked: UffdballoonError | None
) -> list[Probe]:
    """Say what `attach` would do, by the same look at the filters."""
    if permits is None or unlooked is not None:
        return [
            Probe(
                f"{pid}: userfaultfd by",
                ok=False,
                detail=unlooked.why if unlooked else "",
                errno=(unlooked.errno if unlooked else None) or errno.EPERM,
                fix=unlooked.hint if unlooked else "",
                essential=True,
            )
        ]
    privileged = bool(confined.capabilities & _CAP_SYS_PTRACE)
    refused = "" if permits.may("direct") else str(permits.refusals["direct"])
    lacking = refused or ("" if privileged else "it has no CAP_SYS_PTRACE")
    fix = f"{with_lacking(Capability.DAC_READ_SEARCH)}, or give this user access to {DEVICE}"
    if not permits.may("passed"):
        fix = f"{permits.refusals['passed']}; let it hold CAP_SYS_PTRACE"
    found = [
        Probe(
            f"{pid}: userfaultfd by",
            ok=not lacking or (permits.may("passed") and may_use_userfaultfd()),
            detail=f"passed ({lacking})" if lacking else "direct",
            errno=errno.EACCES if permits.may("passed") else errno.EPERM,
            fix=fix,
            essential=True,
        )
    ]
    if ZAPS in permits.refusals:
        found.append(
            Probe(
                f"{pid}: zaps of private memory",
                ok=False,
                detail=str(permits.refusals[ZAPS]),
                errno=errno.EPERM,
                fix="shared memory (memory-backend-memfd,share=on) needs none",
            )
        )
    if permits.filters:
        found.append(
            Probe(
                f"{pid}: seccomp filters",
                ok=True,
                detail=f"{permits.filters} of {permits.instructions} instructions; a thread was "
                f"stopped for {permits.stopped_ns // 1000} us to read them",
            )
        )
    return found


def _unsuitable(target: Target) -> list[Finding]:
    try:
        return look_at(target, None).unsuitable
    except UnsupportedError:  # its RAM cannot be told without the monitor; the rest can
        return judge(gather(target))
