# SPDX-License-Identifier: GPL-2.0-or-later
"""Check the ledger against the page tables and the guest's own account."""

from __future__ import annotations

import click

from uffdballoon.cli.output import print_json, print_table
from uffdballoon.cli.types import PID
from uffdballoon.daemon import client
from uffdballoon.errors import ExitCode
from uffdballoon.model.records.balloon import Verification
from uffdballoon.model.sizes import format_size


@click.command()
@click.argument("pid", type=PID)
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
def verify(pid: int, *, as_json: bool) -> int:
    """Hold the ledger of the attached PID against its page tables.

    Lists where they disagree, and ends with 1 when a page that is called ballooned holds
    memory. To be asked while the guest's balloon does not move.
    """
    found = client.request(pid, "verify", Verification)
    if as_json:
        print_json(found)
    else:
        rows = [("in the balloon", format_size(found.ballooned_bytes))]
        if found.actual_bytes is not None:
            rows.append(("left to the guest", format_size(found.actual_bytes)))
            rows.append(("not accounted for", f"{found.unaccounted_bytes} bytes"))
        rows.append(("disagreements", str(len(found.disagreements))))
        rows += [
            ("holds memory", f"gpa {run.gpa:#x}, {format_size(run.size)}")
            for run in found.disagreements
        ]
        print_table(("", ""), rows)
    return int(ExitCode.FAILED if found.disagreements else ExitCode.DONE)
