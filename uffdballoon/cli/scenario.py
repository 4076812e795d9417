# SPDX-License-Identifier: GPL-2.0-or-later
"""Run enforcement scenarios on a guest of their own."""

from __future__ import annotations

import click

from uffdballoon.cli.output import print_json, print_table, say
from uffdballoon.errors import ExitCode
from uffdballoon.host.privileges import refuse_unless_root
from uffdballoon.lab.host_state import HOST
from uffdballoon.lab.left_behind import tell_left_behind
from uffdballoon.lab.qemu import Accel
from uffdballoon.scenarios import catalogue
from uffdballoon.scenarios.stage import default_accel


@click.group()
def scenario() -> None:
    """Show enforcement on a guest of its own, start to finish."""


@scenario.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
def list_(*, as_json: bool) -> None:
    """List the scenarios."""
    if as_json:
        print_json(
            [
                {"name": s.name, "summary": s.summary, "needs": list(s.needs)}
                for s in catalogue.SCENARIOS
            ]
        )
    else:
        print_table(("name", "summary"), [(s.name, s.summary) for s in catalogue.SCENARIOS])


@scenario.command()
@click.argument("name")
@click.option(
    "--accel",
    type=click.Choice([accel.value for accel in Accel]),
    help="By default KVM where there is one, and TCG for Linux guests.",
)
@click.option("--quick", is_flag=True, help="Repeat what is repeated a few times only.")
def run(name: str, *, accel: str | None, quick: bool) -> int:
    """Run the scenario NAME, and say whether it passed.

    Ends with a line PASS or FAIL, and exit code 0 or 1.

    Example: uffdballoon scenario run read-then-write
    """
    chosen = catalogue.find(name)
    refuse_unless_root("`scenario run`")
    wanted = Accel(accel) if accel else chosen.accel or default_accel()
    for line in [*HOST.put_right(), *tell_left_behind()]:
        say(line)
    why = catalogue.play(chosen, wanted, click.echo, quick=quick)
    if why is None:
        click.echo(f"PASS {name}")
        return int(ExitCode.DONE)
    click.echo(f"FAIL {name}: {' '.join(why.split())}")
    return int(ExitCode.FAILED)
