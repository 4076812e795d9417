# SPDX-License-Identifier: GPL-2.0-or-later
"""The command group, and the only place where errors become exit codes."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import signal
import sys
from typing import TYPE_CHECKING

import click

from uffdballoon.cli.usage import in_our_words, no_such_verb, with_context
from uffdballoon.errors import ExitCode, UffdballoonError
from uffdballoon.model.printable import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator

_STDOUT, _STDERR = 1, 2
COMPLETES = "_UFFDBALLOON_COMPLETE"
"""Set by a shell that wants to know how a line may go on (click's shell completion)."""
_OUTPUT_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
_NO_ARGUMENTS = getattr(click.exceptions, "NoArgsIsHelpError", ())
"""What a group without a verb is told with since click 8.2: its help, which is no error."""
_VERBS = {
    "attach": "attach",
    "bench": "bench",
    "deflate": "balloon",
    "detach": "attach",
    "doctor": "doctor",
    "events": "events",
    "inflate": "balloon",
    "inspect": "inspect",
    "limit": "limiting",
    "list": "listing",
    "map": "map",
    "policy": "policy",
    "release": "balloon",
    "scenario": "scenario",
    "set": "setting",
    "stats": "statistics",
    "status": "status",
    "take-up": "yielding",
    "top": "top",
    "verify": "verifying",
    "yield": "yielding",
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
        with _plain_interrupts():
            module = importlib.import_module(f"uffdballoon.cli.{_VERBS[cmd_name]}")
        # A verb that is a word of Python has an underscore behind it.
        name = cmd_name.replace("-", "_")
        command = getattr(module, name, None) or getattr(module, f"{name}_")
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            with_context(error, ctx, self)
            raise

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in _VERBS and not name.startswith("-") and not ctx.resilient_parsing:
            raise no_such_verb(name, _VERBS)
        return super().resolve_command(ctx, args)


@contextlib.contextmanager
def _plain_interrupts() -> Iterator[None]:
    """Let Ctrl-C end the process at once: an import that is interrupted may swallow it."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _print_versions(context: click.Context, _parameter: click.Parameter, asked: bool) -> None:  # noqa: FBT001 - click's
    if not asked or context.resilient_parsing:
        return
    from uffdballoon.cli.versions import version_lines  # noqa: PLC0415 - only when asked for

    click.echo("\n".join(version_lines()))
    context.exit()


@click.group(
    cls=_Verbs, epilog=_EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_versions,
    help="Show versions and what userfaultfd offers here, and exit.",
)
def cli() -> None:
    """Hold a running QEMU guest to its virtio balloon, from the host."""


def main() -> None:
    """Run the command; print what, why and what to do, and exit with the error's code."""
    sys.exit(_run())


def _run() -> int:
    _open_standard_files()
    try:
        result = _invoke()
    except BaseException as error:  # noqa: BLE001 - each has its words
        return int(_explain(error))
    return int(result) if isinstance(result, int) else int(ExitCode.DONE)


def _invoke() -> object:
    """Do as click's main(), which makes a reader that has enough an exit with 1."""
    if COMPLETES in os.environ:
        cli.main()
    with cli.make_context("uffdballoon", sys.argv[1:]) as context:
        result = cli.invoke(context)
        sys.stdout.flush()  # what cannot be written is known while it can still be told
        return result


def _explain(error: BaseException) -> ExitCode:
    """Say what went wrong; return the code that stands for it."""
    code = ExitCode.FAILED
    match error:
        case UffdballoonError():
            code = error.exit_code
            _tell(error.what, error.why, error.hint)
        case click.UsageError() if isinstance(error, _NO_ARGUMENTS):
            code = ExitCode.USAGE
            with contextlib.suppress(OSError):
                click.echo(error.format_message(), err=True)
        case click.ClickException():
            return _explain(in_our_words(error))
        case click.exceptions.Exit():
            code = ExitCode(error.exit_code)
        case click.exceptions.Abort() | KeyboardInterrupt():
            pass
        case SystemExit():
            raise error
        case BrokenPipeError():
            code = ExitCode.DONE  # whoever read the output has enough of it
            _leave_output()
        case OSError() if error.errno in _OUTPUT_ERRNOS:
            _leave_output()
            _tell("the output cannot be written", error.strerror or "", "write it to another place")
        case _ if os.environ.get("UFFDBALLOON_DEBUG"):
            raise error
        case _:
            hint = "run it again with UFFDBALLOON_DEBUG=1 and report what it prints"
            _tell(f"unexpected: {type(error).__name__}: {error}", "", hint)
    return code


def _tell(what: str, why: str, hint: str) -> None:
    for label, text in (("error", what), ("why", why), ("do", hint)):
        if text:
            with contextlib.suppress(OSError):
                click.echo(f"{label}: {one_line(text)}", err=True)


def _leave_output() -> None:
    """Keep the interpreter from writing once more what nobody takes."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, _STDOUT)
    os.close(nowhere)


def _open_standard_files() -> None:
    """Open what of 0, 1 and 2 is closed: the next file would be taken for it."""
    for fd in (0, _STDOUT, _STDERR):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free
    sys.stdout = sys.stdout or os.fdopen(_STDOUT, "w")
    sys.stderr = sys.stderr or os.fdopen(_STDERR, "w")
