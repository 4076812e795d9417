# SPDX-License-Identifier: GPL-2.0-or-later
"""A thread that was stopped for a zap runs before it is stopped again, whoever goes on zapping.

A stand-in runs what is to be injected: which thread it is, and for how long, is made up.
"""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from uffdballoon.balloon.zap_private import zap_private
from uffdballoon.model.addresses import PAGE_BYTES, HvaRange
from uffdballoon.model.job import run_job
from uffdballoon.target.injector import Injected, Injector

if TYPE_CHECKING:
    from collections.abc import Callable

_STOPPED_NS = 2_000_000


def _injector(*, by_main: bool) -> Injector:
    remote = SimpleNamespace(pid=os.getpid(), is_main=by_main, call=lambda *_: 0)

    def run(function: Callable[[Any], int]) -> Injected[int]:
        return Injected(function(remote), _STOPPED_NS, by_main=by_main)

    return cast("Injector", SimpleNamespace(pid=os.getpid(), run=run))


@pytest.mark.parametrize(("by_main", "share"), [(True, 1.0), (False, 0.02)])
def test_the_last_stop_of_a_zap_has_its_rest_too(*, by_main: bool, share: float) -> None:
    ranges = [HvaRange.of(0x7F0000000000, PAGE_BYTES)]
    report = run_job(zap_private(_injector(by_main=by_main), ranges))
    assert report.stops_ns == (_STOPPED_NS,)
    assert report.rest_s == pytest.approx(share * _STOPPED_NS / 1e9)
    assert (report + report).rest_s == report.rest_s
