# SPDX-License-Identifier: GPL-2.0-or-later
"""A touch of a window, what the contract says of it, and what was done."""

from __future__ import annotations

import enum


class Access(enum.Enum):
    READ = "read"
    WRITE = "write"


class Role(enum.Enum):
    """Who touched.

    A vCPU thread is the guest. Another thread of the target that reads
    (migration, dump, monitor) is the host; one that writes is a device that acts
    for the guest.
    """

    VCPU = "vcpu"
    HOST_READER = "host-reader"
    DEVICE_WRITER = "device-writer"


class Verdict(enum.Enum):
    """What the contract says of a touch."""

    ORDINARY = "ordinary"
    GRANTED = "granted"
    VIOLATION = "violation"


class Action(enum.Enum):
    """What was done about a touch: the rung of the ladder that answered it.

    GRANT is the rung `observe` where the verdict is a violation, or else the contract's own
    grant; RELEASE ends a freeze or a pause. NO_MEMORY: the host has no page for it, and it waits
    for one.
    """

    NONE = "none"
    GRANT = "grant"
    ZERO_READ = "zero-read"
    THROTTLE = "throttle"
    FREEZE = "freeze"
    PAUSE = "pause"
    POISON = "poison"
    KILL = "kill"
    RELEASE = "release"
    NO_MEMORY = "no-memory"
