# SPDX-License-Identifier: GPL-2.0-or-later
"""Talk to a running manager."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import socket
from typing import TYPE_CHECKING, TypeVar

from uffdballoon.daemon.protocol import (
    MAX_ANSWER_BYTES,
    VERSION,
    decode_answer,
    decode_object,
    encode,
    is_progress,
)
from uffdballoon.daemon.runtime import peer_of, socket_path
from uffdballoon.errors import ControlError, NotAttachedError, PermissionDeniedError
from uffdballoon.model.records.changes import Detaching
from uffdballoon.model.records.events import read_event
from uffdballoon.model.records.status import Status
from uffdballoon.target.claim import claimant_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from uffdballoon.model.records.events import Event

T = TypeVar("T")

_PATIENCE_S = 10.0


def request(pid: int, verb: str, shape: type[T], **arguments: object) -> T:
    """Ask the manager of process ``pid``; return the verb's record, or raise what it raised.

    Raises ControlError when it says nothing for 10 s: one that works says so each second.
    """
    with _connect(pid) as connection, connection.makefile("rb") as lines:
        asked = {"v": VERSION, "verb": verb, "progress": True, **arguments}
        connection.sendall(encode(asked))
        while is_progress(line := lines.readline(MAX_ANSWER_BYTES)):
            pass
        return _result(line, pid, shape)


def status(pid: int) -> Status:
    """Ask the manager of process ``pid`` how it stands."""
    return request(pid, "status", Status)


def detach(pid: int) -> None:
    """End the manager of process ``pid`` and wait for its end: only then is the guest let go."""
    try:
        manager = request(pid, "detach", Detaching).manager
    except NotAttachedError as error:
        raise NotAttachedError(
            error.what,
            why=error.why,
            hint="nothing is to be let go; what is attached shows: uffdballoon list",
            pid=pid,
        ) from error
    try:
        pidfd = os.pidfd_open(manager)
    except ProcessLookupError:
        return
    try:
        if not select.select([pidfd], [], [], _PATIENCE_S)[0]:
            raise ControlError(
                f"the manager of process {pid} does not end",
                why=f"it is process {manager}, and was told to",
                hint=f"the guest is let go at once by: kill -KILL {manager}",
                pid=pid,
            )
    finally:
        os.close(pidfd)


def recent_events(pid: int) -> list[Event]:
    """Return the last events that the manager of process ``pid`` told."""
    return [read_event(event) for event in request(pid, "events", list[object])]


def follow(pid: int) -> Iterator[list[Event]]:
    """Yield the last events past at first, then each that comes alone, until the manager ends."""
    with _connect(pid) as connection, connection.makefile("rb") as lines:
        connection.sendall(encode({"v": VERSION, "verb": "follow"}))
        answer = lines.readline(MAX_ANSWER_BYTES)
        _result(answer, pid, object)
        past = decode_object(answer).get("past")
        told = (read_event(decode_object(line)) for line in lines)
        yield list(itertools.islice(told, past if isinstance(past, int) else 0))
        connection.settimeout(None)  # events come when they come
        for event in told:
            yield [event]


@contextlib.contextmanager
def _connect(pid: int) -> Iterator[socket.socket]:
    path = socket_path(pid)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_PATIENCE_S)
        try:
            connection.connect(str(path))
        except PermissionError as error:
            raise PermissionDeniedError(
                f"not allowed to talk to the manager of process {pid}",
                why=f"{path} belongs to another user",
                hint="run as the user who attached, or as root",
                pid=pid,
                errno=error.errno,
            ) from error
        except BlockingIOError as error:  # others wait for it already, as many as may
            claimant = claimant_of(pid)
            raise _silent(pid, claimant.pid if claimant is not None else None) from error
        except OSError as error:  # XDG_RUNTIME_DIR may be anything, or longer than a path may be
            _refuse_another_users(pid)
            raise NotAttachedError(
                f"process {pid} is not attached",
                why=f"no manager listens at {path}",
                hint=f"attach first: uffdballoon attach {pid}",
                pid=pid,
            ) from error
        try:
            yield connection
        except TimeoutError as error:
            raise _silent(pid, peer_of(connection).pid) from error
        except (ConnectionError, ValueError) as error:
            raise _hung_up(pid) from error


def _refuse_another_users(pid: int) -> None:
    """Raise PermissionDeniedError when it is attached by a user who listens elsewhere."""
    claimant = claimant_of(pid)
    if claimant is not None and claimant.uid != os.geteuid():
        raise PermissionDeniedError(
            f"not allowed to talk to the manager of process {pid}",
            why=f"it is process {claimant.pid} of uid {claimant.uid}",
            hint="run as the user who attached",
            pid=pid,
        )


def _result(line: bytes, pid: int, shape: type[T]) -> T:
    if not line.endswith(b"\n"):
        raise _hung_up(pid)
    return decode_answer(line, shape)


def _hung_up(pid: int) -> ControlError:
    return ControlError(
        f"the manager of process {pid} hung up",
        why="it ended before it answered",
        hint=f"see its own terminal, or attach again: uffdballoon attach {pid}",
        pid=pid,
    )


def _silent(pid: int, manager: int | None) -> ControlError:
    if manager is None:
        return ControlError(
            f"the manager of process {pid} does not answer",
            why="others wait for it already, as many as may",
            hint="try again; which process it is shows: uffdballoon list",
            pid=pid,
        )
    return ControlError(
        f"the manager of process {pid} does not answer",
        why=f"it is process {manager}, and said nothing for {_PATIENCE_S:g} s",
        hint=f"if it is stopped, have it go on: kill -CONT {manager}; "
        f"the guest is let go at once by: kill -KILL {manager}",
        pid=pid,
    )
