# SPDX-License-Identifier: GPL-2.0-or-later
"""Status and events as text for a person."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

from uffdballoon.model.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Mapping


def status_rows(status: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return a status as (name, value) rows."""
    touches, latency = status["touches"], status["latency_ns"]
    stopped = status["stopped_us"]
    return [
        ("target", f"{status['pid']} ({status['state']}, userfaultfd {status['uffd_method']})"),
        ("contract", f"{_contract(status['contract'])}, observer {status['observer']}"),
        ("policy", status["policy"]),
        ("guest RAM", format_size(status["ram_bytes"])),
        ("in the balloon", format_size(status["ballooned_bytes"])),
        ("reclaimed", format_size(status["reclaimed_bytes"])),
        ("windows", f"{status['windows']} ({status['vmas']} mappings in the target)"),
        ("violations", f"{touches['violations']}"),
        (
            "other touches",
            ", ".join(
                f"{touches[name]} {words}"
                for name, words in (
                    ("granted", "granted"),
                    ("ordinary", "ordinary"),
                    ("host_reads", "host reads"),
                )
            ),
        ),
        ("answered by", ", ".join(f"{k} {v}" for k, v in status["actions"].items() if v) or "-"),
        *(("held", _held(touch)) for touch in status["held"]),
        ("answer time", ", ".join(f"{k} {v / 1000:.1f} us" for k, v in latency.items())),
        (
            "main thread stopped",
            f"{stopped['attach']} us to attach, at most {stopped['zap_max']} us at a time to zap",
        ),
        ("events dropped", f"{status['events_dropped']}"),
    ]


def _contract(contract: Mapping[str, Any]) -> str:
    if contract["kind"] == "told":
        return "told"
    state = "below it" if contract["below_floor"] else "kept"
    grace = ", in its boot grace" if contract["in_grace"] else ""
    return f"cap, floor {format_size(contract['floor_bytes'])} ({state}{grace})"


def _held(touch: Mapping[str, Any]) -> str:
    ends = "until released" if touch["left_s"] is None else f"for {touch['left_s']:.1f} s more"
    gpa = "?" if touch["gpa"] is None else f"{touch['gpa']:#x}"
    return (
        f"tid {touch['tid']} by {touch['action']}, {touch['access']} of gpa {gpa}, "
        f"for {touch['held_s']:.1f} s, {ends}"
    )


def event_line(event: Mapping[str, Any]) -> str:
    """Return an event as one line."""
    if event["verdict"] is None:
        why = f": {event['why']}" if "why" in event else ""
        return f"{_clock(event)} {event['kind']}{why}"
    gpa = "?" if event["gpa"] is None else f"{event['gpa']:#x}"
    who = f"tid {event['tid']}" if event["vcpu"] is None else f"vcpu {event['vcpu']}"
    return (
        f"{_clock(event)} {event['kind']} {event['access']} gpa {gpa} "
        f"size {event['size']} {who} -> {event['action']}"
    )


def _clock(event: Mapping[str, Any]) -> str:
    return f"{dt.datetime.fromtimestamp(event['time_ns'] / 1e9, tz=dt.UTC):%H:%M:%S.%f}"
