# SPDX-License-Identifier: GPL-2.0-or-later
"""The command group, and the only place where errors become exit codes."""

from __future__ import annotations

import importlib
import os
import sys

import click

from uffdballoon import __version__
from uffdballoon.errors import ExitCode, UffdballoonError

_VERBS = {
    "attach": "attach",
    "bench": "bench",
    "deflate": "balloon",
    "detach": "attach",
    "doctor": "doctor",
    "events": "events",
    "inflate": "balloon",
    "inspect": "inspect",
    "list": "listing",
    "map": "map",
    "release": "balloon",
    "scenario": "scenario",
    "set": "setting",
    "stats": "statistics",
    "status": "status",
    "top": "top",
    "verify": "verifying",
}
"""The module of each verb."""

_EXIT_CODES = (
    "Exit codes: 0 done, 1 failed, 2 usage, 3 permission, 4 this kernel or VMM cannot, "
    "5 a violation was found."
)


class _Verbs(click.Group):
    """Imports the module of a verb when it is asked for.

    All of them together take 0.4 s, which `status` in a script would pay each time.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's
        if cmd_name not in _VERBS:
            return None
        module = importlib.import_module(f"uffdballoon.cli.{_VERBS[cmd_name]}")
        # A verb that is a word of Python has an underscore behind it.
        command = getattr(module, cmd_name, None) or getattr(module, f"{cmd_name}_")
        assert isinstance(command, click.Command)
        return command


@click.group(
    cls=_Verbs, epilog=_EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(__version__)
def cli() -> None:
    """Hold a running QEMU guest to its virtio balloon, from the host."""


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
