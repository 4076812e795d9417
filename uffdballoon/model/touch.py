# SPDX-License-Identifier: GPL-2.0-or-later
"""A touch of a window, what the contract says of it, and what was done."""

from __future__ import annotations

import enum


class Access(enum.Enum):
    READ = "read"
    WRITE = "write"


class Role(enum.Enum):
    """Who touched: a vCPU is the guest, any other thread of the target is the host."""

    VCPU = "vcpu"
    HOST = "host"


class Verdict(enum.Enum):
    """What the contract says of a touch."""

    ORDINARY = "ordinary"
    GRANTED = "granted"
    VIOLATION = "violation"


class Action(enum.Enum):
    """What was done about a touch: the rung of the ladder that answered it."""

    NONE = "none"
    GRANT = "grant"
    ZERO_READ = "zero-read"
    THROTTLE = "throttle"
    FREEZE = "freeze"
    PAUSE = "pause"
    POISON = "poison"
    KILL = "kill"
