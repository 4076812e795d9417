# SPDX-License-Identifier: GPL-2.0-or-later
"""Where an attach tells its events: to `--events`, and to the terminal."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from uffdballoon.cli.terminal import Terminal, Verbosity
from uffdballoon.cli.text.events import event_line
from uffdballoon.daemon.outputs import EventWriter
from uffdballoon.daemon.sinks import SocketSink, journal_entry, open_path, open_stream
from uffdballoon.model.records.encoding import to_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from uffdballoon.daemon.outputs import Output
    from uffdballoon.model.origin import Origin
    from uffdballoon.model.records.events import Event

DEFAULT_LIMIT_BYTES = 64 << 20
_JOURNAL = "journal"
_STDOUT, _STDERR = 1, 2


class Told(NamedTuple):
    """What a manager tells events to, and what tells a person how things go."""

    outputs: list[Output]
    say: Callable[[str], None]


@contextlib.contextmanager
def event_outputs(
    path: str | None, form: str, limit_bytes: int, verbosity: Verbosity, origin: Origin
) -> Iterator[Told]:
    """Open them for as long as the attach lasts; raise UsageError.

    ``path`` is a file's, - for standard output, or "journal"; ``form`` is json or text;
    ``origin`` is whose they are.
    """
    with contextlib.ExitStack() as opened:
        terminal = Terminal(open_stream("standard error", _STDERR), verbosity)
        opened.callback(terminal.close)
        outputs: list[Output] = [terminal]
        if path is not None:
            writer = _writer(path, form, limit_bytes, terminal, origin)
            opened.callback(writer.close)
            outputs.append(writer)
        yield Told(outputs, terminal.say)


def _writer(
    path: str, form: str, limit_bytes: int, terminal: Terminal, origin: Origin
) -> EventWriter:
    def line(event: Event) -> bytes:
        event = origin.mark(event)  # the writer has events of its own
        return f"{to_json(event) if form == 'json' else event_line(event)}\n".encode()

    def entry(event: Event) -> bytes:
        event = origin.mark(event)
        # In the journal the events of all VMs come together.
        return journal_entry(event, f"{origin.shown}: {event_line(event)}", to_json(event))

    if path == _JOURNAL:
        return EventWriter(SocketSink.to_journal(), entry, terminal.say)
    if path == "-":
        return EventWriter(open_stream("standard output", _STDOUT), line, terminal.say)
    return EventWriter(open_path(Path(path), limit_bytes), line, terminal.say)
