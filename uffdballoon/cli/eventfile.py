# SPDX-License-Identifier: GPL-2.0-or-later
"""Events written to a file or to standard output as they come."""

from __future__ import annotations

import contextlib
import sys
from typing import IO, TYPE_CHECKING

from uffdballoon.cli.text.events import event_line
from uffdballoon.errors import UsageError
from uffdballoon.model.records.encoding import to_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from uffdballoon.model.records.events import Event


@contextlib.contextmanager
def event_writer(path: str | None, form: str) -> Iterator[Callable[[Event], None]]:
    """Yield what writes one event, line by line, so that `tail -f` shows it at once."""
    with contextlib.ExitStack() as files:
        stream: IO[str] | None = None
        if path == "-":
            stream = sys.stdout
        elif path is not None:
            try:
                stream = files.enter_context(open(path, "a", encoding="utf-8"))  # noqa: PTH123
            except OSError as error:
                raise UsageError(
                    f"cannot write events to {path}",
                    why=error.strerror or "",
                    hint="give a file that can be written, or -",
                ) from error

        def write(event: Event) -> None:
            if stream is not None:
                line = to_json(event) if form == "json" else event_line(event)
                print(line, file=stream, flush=True)

        yield write
