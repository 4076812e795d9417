# SPDX-License-Identifier: GPL-2.0-or-later
"""Tell what this host can do, and what to do about what it cannot."""

from __future__ import annotations

import dataclasses
import errno
from typing import TYPE_CHECKING, NamedTuple

import click

from uffdballoon.cli.monitor_choice import AUTO, choose_monitor
from uffdballoon.cli.output import print_json, print_table
from uffdballoon.cli.types import PID, QMP
from uffdballoon.errors import (
    ExitCode,
    MonitorBusyError,
    PermissionDeniedError,
    QmpError,
    UffdballoonError,
    UnsupportedError,
    UsageError,
)
from uffdballoon.host.jobs import ATTACH
from uffdballoon.host.privileges import Capability, with_lacking
from uffdballoon.host.probes import (
    ATTACH_TO_OWN,
    Probe,
    job_name,
    may_anybody_use_userfaultfd,
    may_use_userfaultfd,
    probe_host,
)
from uffdballoon.host.uffd import DEVICE
from uffdballoon.model.records.host import DoctorReport, ProbeFacts
from uffdballoon.model.sizes import format_size
from uffdballoon.session import look_at
from uffdballoon.target.private_file import why_refused
from uffdballoon.target.process import Target
from uffdballoon.target.readiness import refuse_unless_ready
from uffdballoon.target.seccomp import ZAPS, Permits, look_at_filters
from uffdballoon.vmm.qemu.suitability import gather, judge
from uffdballoon.vmm.qemu.threads import find_rcu_thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from uffdballoon.target.confinement import Confinement
    from uffdballoon.vmm.qemu.suitability import Finding

_CAP_SYS_PTRACE = 1 << 19
_ATTACH_TO_OTHERS = job_name(ATTACH)


@click.command()
@click.option("--pid", type=PID, help="Say also what stands in the way of attaching to it.")
@click.option(
    "--qmp", type=QMP, metavar=QMP.name, help="Socket of a QMP monitor of that QEMU, as for attach."
)
@click.option("--json", "as_json", is_flag=True, help="Print each thing that was tried as JSON.")
def doctor(pid: int | None, *, qmp: str | None, as_json: bool) -> int:
    """Say what works here, and for each lack what to do.

    Ends with 0 when the main job can be done, else 3 (permission) or 4 (this kernel cannot).
    """
    if qmp is not None and pid is None:
        raise UsageError(
            "--qmp goes with --pid",
            why="a monitor is asked about its own QEMU",
            hint="give the pid of that QEMU, too",
        )
    probes = sorted(probe_host(), key=lambda probe: (probe.ok, not probe.essential))
    probes += _target_probes(pid, qmp) if pid is not None else []
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


def _target_probes(pid: int, qmp: str | None) -> list[Probe]:
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
        if refused:
            return [access]
        return [access, *_looks(target, choose_monitor(pid, qmp or AUTO).path)]


def _looks(target: Target, qmp: str | None) -> list[Probe]:
    pid = target.pid
    confined = target.confinement()
    tids = _borrowed(target)
    ready = _refusal(lambda: refuse_unless_ready(pid, tids))
    busy = _refusal(target.refuse_if_busy)
    # A frozen QEMU answers on no monitor, and is refused in any case.
    ram = _look_at_ram(target, None if ready else qmp)
    permits: Permits | None = None
    unlooked: UffdballoonError | None = None
    if ready is None:
        try:
            permits = look_at_filters(pid, target.pidfd, tids)
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
        *ram.probes,
        *([] if ready else _filter_probes(pid, confined, permits, unlooked)),
        *([] if permits is None else _zap_probes(pid, permits, needed=ram.is_zapped)),
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
            for finding in ram.unsuitable
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
    refused = "" if permits.may("direct") else str(permits.refusals["direct"])
    lacking = refused or _lacks_privilege(confined)
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


def _lacks_privilege(confined: Confinement) -> str:
    """Say what userfaultfd(2) lacks there; empty where it is allowed (userfaultfd(2), EPERM)."""
    if may_anybody_use_userfaultfd():
        return ""
    if not confined.capabilities & _CAP_SYS_PTRACE:
        return "it has no CAP_SYS_PTRACE"
    if "user" in confined.foreign_namespaces:  # it counts in that namespace and below
        return "its CAP_SYS_PTRACE is of another user namespace"
    return ""


def _zap_probes(pid: int, permits: Permits, *, needed: bool) -> list[Probe]:
    """Tell of a refusal to zap; ``needed`` says that this guest's memory is zapped by calls."""
    if ZAPS not in permits.refusals:
        return []
    return [
        Probe(
            f"{pid}: zaps of private memory",
            ok=False,
            detail=str(permits.refusals[ZAPS]),
            errno=errno.EPERM,
            fix="shared memory (memory-backend-memfd,share=on) needs none",
            essential=needed,
        )
    ]


def _borrowed(target: Target) -> tuple[int, ...]:
    """Return the threads that `attach` may stop."""
    idle = find_rcu_thread(target).thread
    return (target.pid,) if idle is None else (idle.tid, target.pid)


class _Ram(NamedTuple):
    """What is said of the guest's RAM; ``is_zapped``: injected calls are what drops some of it."""

    probes: list[Probe]
    unsuitable: list[Finding]
    is_zapped: bool = False


def _look_at_ram(target: Target, qmp: str | None) -> _Ram:
    """Say whether `attach`, with the same monitor, knows the guest's RAM and can take it."""
    name = f"{target.pid}: guest RAM"
    try:
        looked = look_at(target, qmp)
    except MonitorBusyError as busy:  # `attach` goes on without
        held = Probe(f"{target.pid}: monitor", ok=False, detail=_told(busy), fix=busy.hint)
        without = _look_at_ram(target, None)
        return without._replace(probes=[held, *without.probes])
    except (PermissionDeniedError, QmpError, UnsupportedError) as error:
        probe = Probe(
            name,
            ok=False,
            detail=_told(error),
            errno=error.errno,
            fix=error.hint,
            essential=True,
        )
        return _Ram([probe], judge(gather(target)))
    blocks = looked.layout.blocks
    refusals = [why for block in blocks if (why := why_refused(target.pid, block))]
    found = f"{format_size(looked.layout.allocated_bytes)}, by {looked.layout.source}"
    probe = Probe(
        name,
        not refusals,
        "; ".join(refusals) or found,
        fix="`attach` says what to do about each",
        essential=True,
    )
    return _Ram([probe], looked.unsuitable, not all(block.shared for block in blocks))


def _told(error: UffdballoonError) -> str:
    return f"{error.what}: {error.why}"
