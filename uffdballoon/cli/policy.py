# SPDX-License-Identifier: GPL-2.0-or-later
"""Show and change what a guest is held to while it is attached."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from uffdballoon.cli.output import print_json, print_table, say
from uffdballoon.cli.text.policy import change_lines, policy_rows
from uffdballoon.cli.types import DURATION_NS, LADDER, NODE_SIZE, PID, SIZE
from uffdballoon.daemon import client
from uffdballoon.model.records.policy import PolicyChange

if TYPE_CHECKING:
    from uffdballoon.model.policy import Policy


@click.command()
@click.argument("pid", type=PID)
@click.argument("ladder", type=LADDER, required=False)
@click.option("--contract", type=click.Choice(["told", "cap"]), help="told drops all floors.")
@click.option("--floor", type=SIZE, help="Under cap: what stays in the balloon.")
@click.option(
    "--limit", type=SIZE, help="Under cap: what the guest may have of its RAM, in place of a floor."
)
@click.option(
    "--count-reported/--no-count-reported",
    default=None,
    help="Under cap: from now on what is reported free is in the balloon, or is not.",
)
@click.option(
    "--node-floor",
    "node_floors",
    type=NODE_SIZE,
    multiple=True,
    help="Under cap: what stays in the balloon of that NUMA node of the guest; those of other "
    "nodes stay as they are. 0: no floor.",
)
@click.option(
    "--boot-grace",
    "grace_ns",
    type=DURATION_NS,
    help="Under cap: for so long after a reset the guest may go below the floor. From the next "
    "reset on; a grace that runs ends.",
)
@click.option(
    "--boot-grace-bytes",
    "grace_bytes",
    type=SIZE,
    help="Under cap: it may touch so much meanwhile. As --boot-grace.",
)
@click.option(
    "--without-monitor",
    is_flag=True,
    help="Take what can hurt without a monitor, as with attach.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was and what is as JSON.")
def policy(  # noqa: PLR0913 - an option each
    pid: int,
    ladder: Policy | None,
    *,
    contract: str | None,
    floor: int | None,
    limit: int | None,
    count_reported: bool | None,
    node_floors: tuple[tuple[int, int], ...],
    grace_ns: int | None,
    grace_bytes: int | None,
    without_monitor: bool,
    as_json: bool,
) -> None:
    """Change the policy or the terms that the attached PID is held to.

    What is not given stays. Without LADDER and options, show what is in force. Who is frozen or
    throttled goes on if the new policy does not hold it.

    Example: uffdballoon policy 4711 zero-read,freeze
    """
    change = client.request(
        pid,
        "policy",
        PolicyChange,
        policy=None if ladder is None else str(ladder),
        contract=contract,
        floor_bytes=floor,
        limit_bytes=limit,
        count_reported=count_reported,
        node_floors=node_floors,
        boot_grace_ns=grace_ns,
        boot_grace_bytes=grace_bytes,
        without_monitor=without_monitor,
    )
    options = (contract, floor, limit, count_reported, grace_ns, grace_bytes)
    given = (ladder, *options) != (None,) * 7
    if as_json:
        print_json(change)
    elif given or node_floors or without_monitor:
        for line in change_lines(change):
            say(line)
    else:
        print_table(("", ""), policy_rows(change))
