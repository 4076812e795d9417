# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the command begins; `python -m uffdballoon` is `uffdballoon`.

Until the command is there Ctrl-C ends the process as it ends any other: nothing was begun yet, and
an import that is interrupted leaves a traceback.
"""

import signal

_interrupted = signal.getsignal(signal.SIGINT)  # ignored, where the shell has it so
if _interrupted is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def main() -> None:
    """Run the command."""
    from uffdballoon.cli.main import main as run  # noqa: PLC0415 - see above

    signal.signal(signal.SIGINT, _interrupted)
    run()


if __name__ == "__main__":
    main()
