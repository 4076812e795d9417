# SPDX-License-Identifier: GPL-2.0-or-later
"""The command group, and the only place where errors become exit codes."""

from __future__ import annotations

import os
import sys

import click

from uffdballoon import __version__
from uffdballoon.cli import (
    attach,
    balloon,
    bench,
    doctor,
    events,
    inspect,
    listing,
    scenario,
    setting,
    statistics,
    status,
    top,
    verifying,
)
from uffdballoon.cli import (
    map as map_view,
)
from uffdballoon.errors import ExitCode, UffdballoonError

_EXIT_CODES = (
    "Exit codes: 0 done, 1 failed, 2 usage, 3 permission, 4 this kernel or VMM cannot, "
    "5 a violation was found."
)


@click.group(epilog=_EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Hold a running QEMU guest to its virtio balloon, from the host."""


for verb in (
    doctor.doctor,
    listing.list_,
    inspect.inspect,
    attach.attach,
    status.status,
    map_view.map_,
    top.top,
    events.events,
    balloon.inflate,
    balloon.deflate,
    balloon.release,
    setting.set_,
    verifying.verify,
    statistics.stats,
    attach.detach,
    scenario.scenario,
    bench.bench,
):
    cli.add_command(verb)


def main() -> None:
    """Run the command; print what, why and what to do, and exit with the error's code."""
    sys.exit(_run())


def _run() -> int:
    try:
        result = cli.main(standalone_mode=False)
    except UffdballoonError as error:
        for label, text in (("error", error.what), ("why", error.why), ("do", error.hint)):
            if text:
                click.echo(f"{label}: {text}", err=True)
        return int(error.exit_code)
    except click.ClickException as error:
        error.show()
        return int(ExitCode.USAGE)
    except (click.exceptions.Abort, KeyboardInterrupt):
        return int(ExitCode.FAILED)
    except BrokenPipeError:
        # Whoever read our output has enough of it; keep the interpreter from trying again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.DONE)
    except Exception as error:
        if os.environ.get("UFFDBALLOON_DEBUG"):
            raise
        click.echo(f"error: unexpected: {type(error).__name__}: {error}", err=True)
        click.echo("do: run it again with UFFDBALLOON_DEBUG=1 and report what it prints", err=True)
        return int(ExitCode.FAILED)
    return int(result) if isinstance(result, int) else int(ExitCode.DONE)
