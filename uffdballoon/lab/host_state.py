# SPDX-License-Identifier: GPL-2.0-or-later
"""Huge pages, settings and mounts of the host, changed for a while and put right in any case.

Everything is written down before it is done, in a file that the whole host shares. So several
processes may change the same things side by side, and whoever comes next puts right what a
process that was killed has left.

A guardian beside each holder does so at once when its holder dies: khugepaged at its most
aggressive keeps a CPU busy, and reserved huge pages are memory that nobody else has, until
somebody comes by who would put them right, maybe never. The file is for when the guardian is
killed as well, as all of a cgroup is by a service manager or a container runtime.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import subprocess
import sys
import uuid
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from uffdballoon.errors import LabError
from uffdballoon.lab.host_record import (
    Holder,
    Pool,
    Record,
    Setting,
    encode,
    mount_points,
    mount_source,
    parse,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from uffdballoon.lab.host_record import IsGone

POOL = "/sys/kernel/mm/hugepages/hugepages-2048kB"
_NOT_OURS = 0o077

_log = logging.getLogger(__name__)

# Waits for a line, which says that all is put back. When its pipe reads end-of-file instead,
# whoever started it has ended, in whatever way. A shell, as it is small and there at once.
_GUARDIAN = "trap '' INT TERM HUP; read -r _ || exec \"$@\""


class Host:
    """The host, and the record of what is changed of it.

    ``root`` is where its /proc/sys, /run and /sys are; another than / is for tests. Processes
    and mounts are those of this host in any case. What a method changes is put back when its
    context is left. OSError is what the host says to a change, LabError what else is wrong.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        # Not below XDG_RUNTIME_DIR, as the managers' sockets: the host has one pool.
        self._directory = root / "run" / "uffdballoon"

    def put_right(self, ended: str = "") -> list[str]:
        """Put right what holders that died have left; return in words what that was.

        ``ended`` is the id of a holder that is known to have. Without root there is nothing
        that could be put right.
        """
        if not self._has_record():
            return []
        with self._opened() as changes:
            changes.drop(lambda holder: holder.id == ended or _is_dead(holder))
        return changes.words

    @contextlib.contextmanager
    def settings(self, values: Mapping[str, str]) -> Iterator[None]:
        """Set files below /proc/sys/vm or /sys/kernel/mm/transparent_hugepage to values."""
        with self._holding() as holder:
            with self._opened_after_putting_right() as changes:
                changes.set(holder, values)
            yield

    @contextlib.contextmanager
    def huge_pages(self, pages: int) -> Iterator[None]:
        """Add huge pages of 2 MiB to the pool, or take some away when ``pages`` is negative."""
        with self._holding() as holder:
            with self._opened_after_putting_right() as changes:
                changes.add_pages(holder, pages)
            yield

    @contextlib.contextmanager
    def hugetlbfs(self, directory: Path) -> Iterator[Path]:
        """Mount a file system of huge pages of 2 MiB on a directory."""
        with self._holding() as holder:
            with self._opened_after_putting_right() as changes:
                changes.mount_hugetlbfs(holder, directory)
            yield directory

    def free_huge_pages(self) -> int:
        """Return how many pages of the pool are free."""
        return int(self.file(f"{POOL}/free_hugepages").read_text())

    def file(self, name: str) -> Path:
        """Return where a file of the host is that is named by its path from /."""
        return self._root / name.removeprefix("/")

    @contextlib.contextmanager
    def _holding(self) -> Iterator[Holder]:
        """Give a holder, and put back what was changed for it."""
        pid = os.getpid()
        ticks = started_ticks(pid)
        assert ticks is not None
        holder = Holder(pid, ticks, uuid.uuid4().hex)
        with self._start_guardian(holder) as guardian:
            try:
                yield holder
            finally:
                self._let_go(holder)
                assert guardian.stdin is not None
                with contextlib.suppress(BrokenPipeError):  # it was killed
                    guardian.stdin.write(b"\n")

    def _let_go(self, holder: Holder) -> None:
        if not self._has_record():
            return  # it could not be written, and so nothing was changed
        with self._opened() as changes:
            changes.drop(lambda other: other.id == holder.id)
        for line in changes.left:
            _log.warning("%s", line)
        if changes.failed:
            raise LabError(
                "the host is not put back as it was",
                why="; ".join(changes.failed),
                hint="the next run tries again, once this process has ended",
            )

    def _start_guardian(self, holder: Holder) -> subprocess.Popen[bytes]:
        # -P: what is in the working directory is not to be imported by root.
        at_last = [sys.executable, "-P", "-m", __name__, str(self._root), holder.id]
        return subprocess.Popen(
            ["sh", "-c", _GUARDIAN, "guardian", *at_last],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,  # not to be interrupted together with its parent
        )

    @contextlib.contextmanager
    def _opened_after_putting_right(self) -> Iterator[_Changes]:
        with self._opened() as changes:
            changes.drop(_is_dead)
            for line in changes.words:
                _log.warning("%s", line)
            yield changes

    @contextlib.contextmanager
    def _opened(self) -> Iterator[_Changes]:
        """Have the record to oneself; whoever ends lets go of it."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        lock = os.open(self._directory / "lab.lock", flags, 0o600)
        try:
            self._refuse_if_others_may_write()
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield self._read()
        finally:
            os.close(lock)

    def _has_record(self) -> bool:
        try:
            return (self._directory / "lab.json").exists()
        except PermissionError:
            return False

    def _refuse_if_others_may_write(self) -> None:
        owner = self._directory.stat()
        if owner.st_uid != os.geteuid() or owner.st_mode & _NOT_OURS:
            raise LabError(
                f"{self._directory} is not ours alone",
                why="others could say there what is to be changed",
                hint=f"remove it, or chmod 700 {self._directory}",
            )

    def _read(self) -> _Changes:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        nothing = Record(boot=boot)
        path = self._directory / "lab.json"
        try:
            record = parse(path.read_text(encoding="utf-8", errors="replace"))
        except FileNotFoundError:
            return _Changes(self, nothing)
        except LabError:
            aside = path.rename(path.with_suffix(".garbled"))
            changes = _Changes(self, nothing)
            changes.left.append(
                f"{path} makes no sense and is {aside.name} now: "
                "what a killed run has changed is as it left it"
            )
            return changes
        # What was changed before the boot ended with it, where /run did not.
        return _Changes(self, record if record.boot == boot else nothing)

    def write(self, record: Record) -> None:
        """Replace the record, whole or not at all; only while it is opened."""
        path = self._directory / "lab.json"
        if record.is_empty:
            path.unlink(missing_ok=True)
            return
        part = path.with_suffix(".part")
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(encode(record))
        part.rename(path)


@dataclass
class _Changes:
    """The record while it is opened, and in words what is done about it.

    What is ``left`` is left on purpose; what ``failed`` stays in the record. A new claim is
    written down before it is made true, and a setting or a mount is put back before its claim
    is taken out: whoever is killed between leaves a claim too much, never one too few.
    """

    host: Host
    record: Record
    done: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @property
    def words(self) -> list[str]:
        return [*self.done, *self.left, *self.failed]

    def set(self, holder: Holder, values: Mapping[str, str]) -> None:
        record = self.record
        for name, value in values.items():
            present = self._present(name)
            setting = record.settings.get(name, Setting(present)).noticing(present)
            record = record.with_setting(name, setting.claimed(holder, value))
        self._save(record)
        for name, value in values.items():
            self.host.file(name).write_text(value)

    def add_pages(self, holder: Holder, pages: int) -> None:
        present = self._pool_pages()
        pool = (self.record.pool or Pool.found(present)).noticing(present).claimed(holder, pages)
        if self._move(pool, present) < pool.wanted:
            raise LabError(
                f"the host has no room for {pages} huge pages",
                why=f"{POOL}/nr_hugepages did not reach {pool.wanted}",
                hint="free memory, or reserve huge pages at boot",
            )

    def mount_hugetlbfs(self, holder: Holder, directory: Path) -> None:
        self._save(replace(self.record, mounts=(*self.record.mounts, holder)))
        options = ["-t", "hugetlbfs", "-o", "pagesize=2M"]
        why = _run("mount", *options, mount_source(holder), str(directory))
        if why:
            raise LabError(
                f"no hugetlbfs can be mounted on {directory}", why=why, hint="run as root"
            )

    def drop(self, is_gone: IsGone) -> None:
        """Put back what was changed for those that are gone, and what they were cut short in."""
        for name, setting in list(self.record.settings.items()):
            with self._telling(name):
                self._drop_setting(name, setting, is_gone)
        if self.record.pool is not None:
            with self._telling("the pool of huge pages"):
                self._drop_pages(self.record.pool, is_gone)
        for holder in filter(is_gone, self.record.mounts):
            with self._telling("a mount"):
                self._unmount(holder)

    @contextlib.contextmanager
    def _telling(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.failed.append(f"{what} cannot be put right: {error}")

    def _drop_setting(self, name: str, setting: Setting, is_gone: IsGone) -> None:
        staying = setting.without(is_gone)
        if staying == setting:
            return
        present = self._present(name)
        if not setting.is_ours(present):
            self.left.append(f"{name} stays {present}, which somebody else has set meanwhile")
            staying = staying.noticing(present)
        elif present != staying.wanted:
            self.host.file(name).write_text(staying.wanted)
            gone = [claim.holder for claim in setting.claims if is_gone(claim.holder)]
            self.done.append(f"{name} is {staying.wanted} again; {_who(gone)} left it {present}")
        if staying.claims:
            self._save(self.record.with_setting(name, staying))
        else:
            self._save(self.record.without_setting(name))

    def _drop_pages(self, pool: Pool, is_gone: IsGone) -> None:
        gone = [claim for claim in pool.claims if is_gone(claim.holder)]
        if not gone and pool.is_settled:
            return
        present = self._pool_pages()
        if not pool.is_ours(present):
            self.left.append(
                f"the pool had {present} huge pages, as somebody else has changed it meanwhile: "
                "only what was added or taken here is put back"
            )
        now = self._move(pool.noticing(present).without(is_gone), present)
        if now != present:
            whose = _who([claim.holder for claim in gone])
            self.done.append(f"the pool has {now} huge pages again; {whose} left it at {present}")

    def _move(self, pool: Pool, present: int) -> int:
        """Give the pool the size that is wanted; return the one that it has then, in pages."""
        pool = pool.moving(present)
        self._save(replace(self.record, pool=pool))
        if pool.wanted != present:
            self.host.file(f"{POOL}/nr_hugepages").write_text(str(pool.wanted))
        reached = self._pool_pages()
        self._save(replace(self.record, pool=pool.settled(reached) if pool.claims else None))
        return reached

    def _unmount(self, holder: Holder) -> None:
        # A guest that is just being killed may still use what a dead one has mounted.
        options = [] if holder.pid == os.getpid() else ["--lazy"]
        mountinfo = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
        for point in mount_points(mountinfo, mount_source(holder)):
            why = _run("umount", *options, point)
            if why:
                self.failed.append(f"{point} cannot be unmounted: {why}")
                return
            self.done.append(f"{point} is unmounted, where {_who([holder])} left huge pages")
        mounts = tuple(other for other in self.record.mounts if other != holder)
        self._save(replace(self.record, mounts=mounts))

    def _present(self, name: str) -> str:
        text = self.host.file(name).read_text().strip()
        chosen = re.search(r"\[(\S+)\]", text)
        return chosen[1] if chosen else text

    def _pool_pages(self) -> int:
        """Return the size that was asked for: pages in use that are too many are not counted."""
        pool = self.host.file(POOL)
        total, surplus = (pool / "nr_hugepages"), (pool / "surplus_hugepages")
        return int(total.read_text()) - int(surplus.read_text())

    def _save(self, record: Record) -> None:
        self.host.write(record)
        self.record = record


HOST = Host()


def _is_dead(holder: Holder) -> bool:
    return started_ticks(holder.pid) != holder.started_ticks


def started_ticks(pid: int) -> int | None:
    """Return when a process started, after the boot (proc(5)); None when there is none alive."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in "XZ" else int(fields[18])


def _who(holders: list[Holder]) -> str:
    return " and ".join(f"process {pid}" for pid in sorted({h.pid for h in holders})) or "a process"


def _run(*command: str) -> str:
    """Run a command; return what it complains of when it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return str(error)
    return done.stderr.strip() or f"exit code {done.returncode}" if done.returncode else ""


if __name__ == "__main__":
    Host(Path(sys.argv[1])).put_right(ended=sys.argv[2])
