# SPDX-License-Identifier: GPL-2.0-or-later
"""What is changed of a host for a while is put back, on a host that is files in a directory."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from uffdballoon.errors import LabError
from uffdballoon.lab.host_record import (
    Holder,
    Pool,
    Record,
    Setting,
    encode,
    mount_points,
    parse,
)
from uffdballoon.lab.host_state import POOL, Host

if TYPE_CHECKING:
    from collections.abc import Callable

DEFRAG = "/sys/kernel/mm/transparent_hugepage/khugepaged/defrag"
ENABLED = "/sys/kernel/mm/transparent_hugepage/enabled"
_BOOT = "01234567-89ab-cdef-0123-456789abcdef"


class FilesHost(Host):
    """A host whose settings keep whatever is written to them."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        for name, text in (
            (DEFRAG, "1"),
            (ENABLED, "always [madvise] never"),
            (f"{POOL}/nr_hugepages", "5"),
            (f"{POOL}/surplus_hugepages", "0"),
        ):
            self.file(name).parent.mkdir(parents=True, exist_ok=True)
            self.put(name, text)
        self.record = self.file("/run/uffdballoon/lab.json")

    def get(self, name: str) -> str:
        return self.file(name).read_text().strip()

    def put(self, name: str, text: str) -> None:
        self.file(name).write_text(f"{text}\n")

    @property
    def pages(self) -> int:
        return int(self.get(f"{POOL}/nr_hugepages"))

    def rewrite(self, change: Callable[[Record], Record]) -> None:
        self.record.write_text(encode(change(parse(self.record.read_text()))))

    def leave_by_kill(self) -> None:
        """Make all that hold something now processes that have died, whose pids came again."""
        text = self.record.read_text()
        started = parse(text).pool or next(iter(parse(text).settings.values()))
        ticks = started.claims[0].holder.started_ticks
        self.record.write_text(text.replace(f'"started_ticks": {ticks}', '"started_ticks": 1'))

    def left_by_kill(self, *, pages: int = 0, settings: dict[str, str] | None = None) -> None:
        """Change something and have that be what a killed process has left."""
        with contextlib.ExitStack() as held:
            if pages:
                held.enter_context(self.huge_pages(pages))
            if settings:
                held.enter_context(self.settings(settings))
            self.leave_by_kill()
            names = [*(settings or {}), f"{POOL}/nr_hugepages"]
            record, left = self.record.read_text(), {name: self.get(name) for name in names}
        # What the context put back is as a kill would have left it again.
        self.record.write_text(record)
        for name, text in left.items():
            self.put(name, text)


@pytest.fixture
def host(tmp_path: Path) -> FilesHost:
    return FilesHost(tmp_path)


def test_a_change_lasts_as_long_as_its_context_and_leaves_no_record(host: FilesHost) -> None:
    with host.settings({DEFRAG: "0", ENABLED: "never"}), host.huge_pages(3):
        assert (host.get(DEFRAG), host.get(ENABLED), host.pages) == ("0", "never", 8)
        assert host.record.stat().st_mode & 0o777 == 0o600
        assert host.record.parent.stat().st_mode & 0o777 == 0o700
    assert (host.get(DEFRAG), host.get(ENABLED), host.pages) == ("1", "madvise", 5)
    assert not host.record.exists()
    assert host.put_right() == []


def test_what_a_killed_process_left_is_put_right_once_and_told(host: FilesHost) -> None:
    host.left_by_kill(pages=3, settings={DEFRAG: "0"})
    assert (host.get(DEFRAG), host.pages) == ("0", 8)
    pid = os.getpid()
    assert host.put_right() == [
        f"{DEFRAG} is 1 again; process {pid} left it 0",
        f"the pool has 5 huge pages again; process {pid} left it at 8",
    ]
    assert (host.get(DEFRAG), host.pages) == ("1", 5)
    assert host.put_right() == []


def test_whoever_changes_something_puts_right_first(
    host: FilesHost, caplog: pytest.LogCaptureFixture
) -> None:
    host.left_by_kill(pages=3, settings={DEFRAG: "0"})
    with host.huge_pages(2):
        assert (host.get(DEFRAG), host.pages) == ("1", 7)
    assert host.pages == 5
    assert f"{DEFRAG} is 1 again" in caplog.text


def test_a_pid_that_came_again_is_not_taken_for_the_holder(host: FilesHost) -> None:
    with host.huge_pages(3):
        assert host.put_right() == []
        host.leave_by_kill()  # the pid stays, that of this process
        assert host.put_right() != []
        assert host.pages == 5


def test_a_pool_has_what_its_living_holders_want(host: FilesHost) -> None:
    with contextlib.ExitStack() as first, host.huge_pages(3):
        first.enter_context(host.huge_pages(20))
        with host.huge_pages(-4):
            assert host.pages == 24
            first.close()
            assert host.pages == 4
        assert host.pages == 8


def test_a_setting_is_as_its_newest_living_holder_wants_it(host: FilesHost) -> None:
    with contextlib.ExitStack() as first, contextlib.ExitStack() as second:
        first.enter_context(host.settings({ENABLED: "never"}))
        second.enter_context(host.settings({ENABLED: "always"}))
        first.close()
        assert host.get(ENABLED) == "always"
        first.enter_context(host.settings({ENABLED: "never"}))
        first.close()
        assert host.get(ENABLED) == "always"
    assert host.get(ENABLED) == "madvise"


def test_a_setting_that_somebody_else_changed_stays_so(
    host: FilesHost, caplog: pytest.LogCaptureFixture
) -> None:
    host.left_by_kill(settings={ENABLED: "never"})
    host.put(ENABLED, "[always] madvise never")
    assert host.put_right() == [f"{ENABLED} stays always, which somebody else has set meanwhile"]
    assert host.get(ENABLED) == "[always] madvise never"
    with host.settings({ENABLED: "never"}):
        host.put(ENABLED, "madvise")
    assert host.get(ENABLED) == "madvise"
    assert "stays madvise" in caplog.text


def test_a_setting_goes_back_to_what_somebody_else_has_made_of_it(host: FilesHost) -> None:
    with host.settings({ENABLED: "never"}):
        host.put(ENABLED, "inherit")
        with host.settings({ENABLED: "always"}):
            assert host.get(ENABLED) == "always"
        assert host.get(ENABLED) == "never"
    assert host.get(ENABLED) == "inherit"


@pytest.mark.parametrize(("pages", "then"), [(18, 15), (6, 3), (1, 0)])
def test_a_pool_that_somebody_else_changed_loses_our_share_alone(
    host: FilesHost, pages: int, then: int
) -> None:
    host.left_by_kill(pages=3)
    host.put(f"{POOL}/nr_hugepages", str(pages))
    assert "only what was added or taken here" in "".join(host.put_right())
    assert host.pages == then


@pytest.mark.parametrize("reached", [5, 6, 8])
def test_a_change_of_the_pool_that_was_cut_short_is_put_right(
    host: FilesHost, reached: int
) -> None:
    host.left_by_kill(pages=3)
    host.put(f"{POOL}/nr_hugepages", str(reached))

    def cut_short(record: Record) -> Record:
        assert record.pool is not None
        return replace(record, pool=replace(record.pool, was_pages=5, to_pages=8))

    host.rewrite(cut_short)
    host.put_right()
    assert host.pages == 5


def test_pages_in_use_that_are_too_many_belong_to_nobody(host: FilesHost) -> None:
    with host.huge_pages(3):
        host.put(f"{POOL}/nr_hugepages", "10")
        host.put(f"{POOL}/surplus_hugepages", "2")
        host.put_right()
    assert host.pages == 5


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"version": 2}', "\udcff", "[" * 9999])
def test_a_record_that_makes_no_sense_is_put_aside_with_a_word(host: FilesHost, text: str) -> None:
    host.record.parent.mkdir(mode=0o700, parents=True)
    host.record.write_text(text, errors="surrogateescape")
    (word,) = host.put_right()
    assert "makes no sense and is lab.garbled now" in word
    assert not host.record.exists()
    with host.huge_pages(3):
        assert host.pages == 8
    assert host.pages == 5


def test_what_was_changed_before_the_boot_is_forgotten(host: FilesHost) -> None:
    host.left_by_kill(pages=3)
    host.rewrite(lambda record: replace(record, boot=_BOOT))
    assert host.put_right() == []
    assert host.pages == 8


def test_a_directory_that_others_may_write_to_is_refused(host: FilesHost) -> None:
    host.left_by_kill(pages=3)
    host.record.parent.chmod(0o777)
    with pytest.raises(LabError, match="not ours alone"):
        host.put_right()
    host.record.parent.chmod(0o700)


def test_a_change_that_the_host_refuses_leaves_nothing(host: FilesHost) -> None:
    other = "/sys/kernel/mm/transparent_hugepage/lacking"
    with pytest.raises(FileNotFoundError), host.settings({DEFRAG: "0", other: "1"}):
        pass
    assert host.get(DEFRAG) == "1"
    assert not host.record.exists()


def test_a_pool_that_gets_too_few_pages_gives_them_back(
    host: FilesHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_text

    def short(path: Path, text: str) -> int:
        return write(path, str(min(int(text), 6)))

    monkeypatch.setattr(Path, "write_text", short)
    with pytest.raises(LabError, match="no room for 3 huge pages"), host.huge_pages(3):
        pass
    assert host.pages == 5
    assert not host.record.exists()


def test_only_settings_of_memory_are_ever_written() -> None:
    for name in ("/proc/sys/vm/../kernel/core_pattern", "/etc/passwd", f"{ENABLED}\n"):
        with pytest.raises(LabError):
            encode(Record(_BOOT).with_setting(name, Setting("1")))
    with pytest.raises(LabError):
        encode(Record(_BOOT).with_setting(ENABLED, Setting("two words")))


def test_a_record_is_read_as_it_was_written() -> None:
    holder = Holder(7, 99, "0" * 32)
    record = Record(
        boot=_BOOT,
        settings={ENABLED: Setting("madvise").claimed(holder, "never")},
        pool=Pool.found(5).claimed(holder, -3),
        mounts=(holder,),
    )
    assert parse(encode(record)) == record


def test_a_mount_is_found_by_what_it_is_of() -> None:
    mountinfo = (
        "36 35 98:0 / /a rw master:1 - ext3 other rw\n"
        "37 35 0:40 / /two\\040words\\134 rw - hugetlbfs ours rw\n"
        "38 35 0:41 / ours rw - hugetlbfs none rw\n"
        "39 - hugetlbfs\n"
    )
    assert mount_points(mountinfo, "ours") == ["/two words\\"]
