# SPDX-License-Identifier: GPL-2.0-or-later
"""Show what a VM's memory is made of."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import click
from msgspec import UNSET

from uffdballoon.cli.monitor_choice import choose_monitor
from uffdballoon.cli.output import print_json, print_table, say
from uffdballoon.cli.types import PID, QMP
from uffdballoon.host.privileges import ALL_CAPABILITIES, capability_names
from uffdballoon.host.procfs import locked_bytes_of
from uffdballoon.model.printable import printable
from uffdballoon.model.records.target import (
    ConfinementFacts,
    FindingFacts,
    RamFacts,
    TargetFacts,
    ThreadFacts,
)
from uffdballoon.model.sizes import format_size
from uffdballoon.session import look_at
from uffdballoon.target.private_file import why_refused
from uffdballoon.target.process import Target
from uffdballoon.vmm.qemu.naming import names_of
from uffdballoon.vmm.qemu.vcpus import find_vcpus

if TYPE_CHECKING:
    from collections.abc import Sequence


@click.command()
@click.argument("pid", type=PID)
@click.option(
    "--qmp",
    type=QMP,
    metavar="PATH|libvirt|URI",
    help="Socket of a QMP monitor of this QEMU, or its libvirt, as for attach.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
def inspect(pid: int, *, qmp: str | None, as_json: bool) -> None:
    """Show RAM blocks, threads and confinement of PID; change nothing."""
    facts = _facts(pid, qmp)
    if as_json:
        print_json(facts)
        return
    print_table(
        ("gpa", "size", "hva", "block", "backing", "shared", "page", "node"),
        [
            (
                f"{row.gpa:#x}-{row.gpa + row.size:#x}",
                format_size(row.size),
                f"{row.hva:#x}",
                row.idstr,
                row.backing.value,
                "yes" if row.shared else "no",
                format_size(row.page_bytes),
                "?" if row.numa_node is None else str(row.numa_node),
            )
            for row in facts.ram
        ],
    )
    if facts.vm:
        say(f"name: {printable(facts.vm)}")
    say(f"guest RAM: {format_size(_nominal_bytes(facts))}")
    for lack in facts.unknown:
        say(f"not known: {lack}")
    for refusal in facts.refusals:
        say(f"cannot be attached: {refusal}")
    balloon = facts.balloon_actual_bytes
    say(f"found by {facts.source}")
    say(f"balloon: guest has {format_size(balloon)}" if balloon else "balloon: not known")
    _show_process(facts)


def _nominal_bytes(facts: TargetFacts) -> int:
    told = facts.nominal_ram_bytes
    return facts.ram_bytes if told is UNSET else told


def _show_process(facts: TargetFacts) -> None:
    vcpus = facts.vcpus
    confined = facts.confinement
    told = ", ".join(f"{tid} is vCPU {number}" for tid, number in vcpus.items())
    say(f"vCPU threads: {told or 'not known'}")
    others = [f"{t.tid} {t.name}" for t in facts.threads if t.tid not in vcpus]
    say(f"other threads: {', '.join(others) or 'none'}")
    say(
        f"confinement: uid {confined.uid}; "
        f"capabilities: {_abridged(confined.capability_names)}; "
        f"no_new_privs {_switch(on=confined.no_new_privs)}; "
        f"seccomp {_switch(on=confined.seccomp)}; "
        f"namespaces of its own: {', '.join(confined.foreign_namespaces) or 'none'}; "
        f"security label: {confined.security_label or 'none'}"
    )
    say(f"locked memory: {format_size(facts.locked_bytes)}")
    for finding in facts.unsuitable:
        refused = f" (attach needs --allow {finding.name})" if finding.refuses else ""
        say(f"does not hold: {finding.sentence}{refused}")


def _abridged(names: Sequence[str]) -> str:
    if len(names) >= ALL_CAPABILITIES:
        return "all"
    return ", ".join(names) or "none"


def _switch(*, on: bool) -> str:
    return "on" if on else "off"


def _facts(pid: int, qmp: str | None) -> TargetFacts:
    with Target.open(pid) as target:
        layout, monitor, unsuitable = look_at(
            target, choose_monitor(pid, qmp).path if qmp else None
        )
        confinement = target.confinement()
        vcpus = target.seen_from_here(monitor.vcpu_tids) if monitor else find_vcpus(target)
        return TargetFacts(
            pid=pid,
            vm=names_of(target.cmdline).name,
            exe=target.exe,
            source=layout.source,
            unknown=tuple(layout.unknown),
            refusals=tuple(why for block in layout.blocks if (why := why_refused(pid, block))),
            locked_bytes=locked_bytes_of(pid),
            ram_bytes=layout.ram_bytes,
            nominal_ram_bytes=layout.allocated_bytes,
            ram=tuple(
                RamFacts(
                    gpa=segment.gpa,
                    size=segment.size_bytes,
                    hva=segment.hva,
                    idstr=segment.block.idstr,
                    memdev=segment.block.memdev,
                    page_bytes=segment.block.page_bytes,
                    backing=segment.block.backing,
                    shared=segment.block.shared,
                    numa_node=segment.block.numa_node,
                )
                for segment in layout.segments
            ),
            balloon_actual_bytes=monitor.balloon_actual_bytes if monitor else None,
            vcpus=dict(vcpus),
            threads=tuple(ThreadFacts(**thread._asdict()) for thread in target.threads()),
            confinement=ConfinementFacts(
                **dataclasses.asdict(confinement),
                capability_names=tuple(capability_names(confinement.capabilities)),
            ),
            unsuitable=tuple(FindingFacts(**dataclasses.asdict(f)) for f in unsuitable),
        )
