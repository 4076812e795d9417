# SPDX-License-Identifier: GPL-2.0-or-later
"""numa_maps as kernels write it, and limits as people do."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from uffdballoon._native import lib
from uffdballoon.errors import UsageError
from uffdballoon.host import numa
from uffdballoon.host.numa import HostNodes, parse_numa_maps
from uffdballoon.model.addresses import HvaRange
from uffdballoon.model.fragmentation import parse_broken
from uffdballoon.model.ofnodes import MOST_NODES, parse_of_node
from uffdballoon.model.sizes import parse_size

if TYPE_CHECKING:
    from pathlib import Path

_TEXT = """\
7f0000000000 default anon=3 dirty=3 N0=2 N1=1 kernelpagesize_kB=4
7f0000003000 default file=/memfd:a\\040N0=9 anon=1 N1=1 kernelpagesize_kB=2048
7f0000400000 default stack anon=2 N0=2
garbage
7f0000800000 bind:1
"""


def test_pages_are_added_up_by_node_for_each_range() -> None:
    first, second = HvaRange.of(0x7F0000000000, 4 << 20), HvaRange.of(0x7F0000800000, 4096)
    assert parse_numa_maps(_TEXT, [first, second]) == {
        first: {0: 8192, 1: 4096 + (2 << 20)},
        second: {},
    }
    assert parse_numa_maps("", [second]) == {second: {}}


def test_blocks_are_a_number_or_a_size() -> None:
    assert [parse_broken(text) for text in ("0", " 12 ", "64M", "3M")] == [0, 12, 32, 1]


@pytest.mark.parametrize("text", ["", "-1", "many", "1.5", "9" * 30])
def test_what_is_neither_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_broken(text)


def test_what_holds_for_a_node_is_its_number_and_a_value() -> None:
    texts = ("0=4096", " 1 = 2M ", "127=0")
    assert [parse_of_node(text, parse_size) for text in texts] == [
        (0, 4096),
        (1, 2 << 20),
        (127, 0),
    ]


@pytest.mark.parametrize("text", ["", "4M", "=4M", "1=", "x=4M", "-1=4M", "128=4M", "1=2=4M"])
def test_what_names_no_node_or_no_value_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_of_node(text, parse_size)


def test_the_fault_loop_knows_as_many_nodes_as_can_be_named() -> None:
    assert lib.UFFDB_MAX_NODES == MOST_NODES


def test_nodes_are_read_again_after_twenty_times_what_it_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]

    def monotonic() -> float:
        now[0] += 0.5  # each look at the clock takes that long
        return now[0]

    span = HvaRange.of(0x7F0000000000, 1 << 21)
    nodes = HostNodes(0, [span])
    monkeypatch.setattr(nodes, "_path", tmp_path / "numa_maps")
    monkeypatch.setattr(numa, "time", SimpleNamespace(monotonic=monotonic))
    assert nodes.read() == {span: {}}, "no CONFIG_NUMA"
    (tmp_path / "numa_maps").write_text("7f0000000000 default anon=3 N0=1 N1=2\n")
    assert nodes.read() == {span: {}}
    now[0] += 11
    assert nodes.read() == {span: {0: 4096, 1: 8192}}
