# SPDX-License-Identifier: GPL-2.0-or-later
"""List the VMs of this host."""

from __future__ import annotations

import contextlib

import click

from uffdballoon.cli.output import print_json, print_table, say
from uffdballoon.daemon.runtime import remove_dead_sockets
from uffdballoon.model.printable import printable
from uffdballoon.model.records.target import ListedTarget
from uffdballoon.model.sizes import format_size
from uffdballoon.target.claim import claimant_of
from uffdballoon.target.process import list_targets
from uffdballoon.vmm.qemu.discovery import options_of
from uffdballoon.vmm.qemu.monitors import find_monitors
from uffdballoon.vmm.qemu.naming import names_of


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
def list_(*, as_json: bool) -> None:
    """List the VMs that can be attached to."""
    remove_dead_sockets()
    rows = []
    with contextlib.ExitStack() as targets:
        for target in list_targets():
            targets.enter_context(target)
            options = options_of(target.pid, target.cmdline)
            names = names_of(target.cmdline)
            rows.append(
                ListedTarget(
                    pid=target.pid,
                    exe=target.exe,
                    machine=options.machine,
                    ram_bytes=options.ram_bytes,
                    attached=claimant_of(target.pid) is not None,
                    vm=names.name,
                    vm_id=names.number,
                    monitors=tuple(find_monitors(target)),
                )
            )
    if as_json:
        print_json(rows)
        return
    if not rows:
        say("no QEMU is running")
    print_table(
        ("pid", "name", "machine", "RAM", "attached", "monitor", "program"),
        [
            (
                str(row.pid),
                _called(row),
                row.machine or "?",
                format_size(row.ram_bytes) if row.ram_bytes is not None else "?",
                "yes" if row.attached else "no",
                _monitors(row),
                row.exe,
            )
            for row in rows
        ],
    )


def _called(row: ListedTarget) -> str:
    """Name it, with Proxmox' id of it behind."""
    number = f"({printable(row.vm_id)})" if row.vm_id else ""
    return " ".join(filter(None, (printable(row.vm), number))) or "-"


def _monitors(row: ListedTarget) -> str:
    """Say whose monitors there are, and which are free."""
    words = (
        f"{monitor.owner.value}: {monitor.state.value}" if monitor.owner else monitor.state.value
        for monitor in row.monitors
    )
    return ", ".join(dict.fromkeys(words)) or "none"
