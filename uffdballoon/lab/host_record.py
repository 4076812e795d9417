# SPDX-License-Identifier: GPL-2.0-or-later
"""What is changed of the host for a while, for whom, and what was there before: as a text.

Pure: ``host_state`` keeps the text in a file, and makes the changes.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from uffdballoon.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    IsGone = Callable[["Holder"], bool]

_VERSION = 1
_MOST = 1 << 40  # pages, and more than any pid or clock tick of a host that is up
_BOOT = re.compile(r"[0-9a-f-]{36}")
_ID = re.compile(r"[0-9a-f]{32}")
_VALUE = re.compile(r"[A-Za-z0-9_+-]{1,64}")
# What is read back is written to by root: nothing but settings of memory, and no way out by "..".
_NAME = re.compile(r"/(proc/sys/vm|sys/kernel/mm/transparent_hugepage)(/[a-z0-9_]+){1,2}")

V = TypeVar("V", int, str)


@dataclass(frozen=True, slots=True)
class Holder:
    """Who wants a change: a process, which a pid alone does not name, as pids come again.

    ``started_ticks`` is when it started, in clock ticks after the boot. ``id`` tells several
    changes of one process apart.
    """

    pid: int
    started_ticks: int
    id: str


@dataclass(frozen=True, slots=True)
class Claim(Generic[V]):
    holder: Holder
    value: V


@dataclass(frozen=True, slots=True)
class Setting:
    """A file with one value: the newest claim's, or what was there before the first."""

    before: str
    claims: tuple[Claim[str], ...] = ()

    @property
    def wanted(self) -> str:
        return self.claims[-1].value if self.claims else self.before

    def is_ours(self, present: str) -> bool:
        """Tell whether we have set it to that, or found it so; else somebody else has."""
        return present == self.before or any(claim.value == present for claim in self.claims)

    def noticing(self, present: str) -> Setting:
        """Take what somebody else has set for what was there before."""
        return self if self.is_ours(present) else replace(self, before=present)

    def claimed(self, holder: Holder, value: str) -> Setting:
        return replace(self, claims=(*self.claims, Claim(holder, value)))

    def without(self, is_gone: IsGone) -> Setting:
        return replace(self, claims=_without(self.claims, is_gone))


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool of huge pages: what was there before, and the sum of the claims; a claim may be < 0.

    A change of it is written down first, as from ``was_pages`` to ``to_pages``, and the two are
    the same once it is made: whoever is killed between leaves a pool that is still known for ours.
    """

    before_pages: int
    was_pages: int
    to_pages: int
    claims: tuple[Claim[int], ...] = ()

    @classmethod
    def found(cls, present: int) -> Pool:
        return cls(present, present, present)

    @property
    def wanted(self) -> int:
        return max(0, self.before_pages + sum(claim.value for claim in self.claims))

    @property
    def is_settled(self) -> bool:
        return self.was_pages == self.to_pages

    def is_ours(self, present: int) -> bool:
        """Tell whether we have made it so large; a change that was cut short counts as ours."""
        least, most = sorted((self.was_pages, self.to_pages))
        return least <= present <= most

    def noticing(self, present: int) -> Pool:
        """Count what somebody else has added or taken away to what was there before."""
        if self.is_ours(present):
            return self
        before = max(0, self.before_pages + present - self.to_pages)
        return replace(self.settled(present), before_pages=before)

    def claimed(self, holder: Holder, pages: int) -> Pool:
        return replace(self, claims=(*self.claims, Claim(holder, pages)))

    def without(self, is_gone: IsGone) -> Pool:
        return replace(self, claims=_without(self.claims, is_gone))

    def moving(self, present: int) -> Pool:
        return replace(self, was_pages=present, to_pages=self.wanted)

    def settled(self, present: int) -> Pool:
        return replace(self, was_pages=present, to_pages=present)


@dataclass(frozen=True, slots=True)
class Record:
    """All that is changed since a boot; each of ``mounts`` is known by its holder's id."""

    boot: str
    settings: Mapping[str, Setting] = field(default_factory=dict)
    pool: Pool | None = None
    mounts: tuple[Holder, ...] = ()

    @property
    def is_empty(self) -> bool:
        return not self.settings and self.pool is None and not self.mounts

    def with_setting(self, name: str, setting: Setting) -> Record:
        return replace(self, settings={**self.settings, name: setting})

    def without_setting(self, name: str) -> Record:
        left = {other: setting for other, setting in self.settings.items() if other != name}
        return replace(self, settings=left)


def encode(record: Record) -> str:
    """Write it as JSON; raise LabError for what could not be read again."""
    text = json.dumps({"version": _VERSION, **asdict(record)}, indent=1) + "\n"
    parse(text)
    return text


def parse(text: str) -> Record:
    """Read what ``encode`` wrote; raise LabError for anything else."""
    try:
        read = json.loads(text)
        _require("it is of another version", holds=read["version"] == _VERSION)
        return Record(
            boot=_matching(_BOOT, read["boot"]),
            settings={
                _matching(_NAME, name): Setting(
                    before=_matching(_VALUE, setting["before"]),
                    claims=_claims(setting["claims"], lambda value: _matching(_VALUE, value)),
                )
                for name, setting in read["settings"].items()
            },
            pool=None if read["pool"] is None else _pool(read["pool"]),
            mounts=tuple(map(_holder, read["mounts"])),
        )
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise LabError(
            "that is no record of what is changed of the host", why=f"{error!r}"
        ) from error


def mount_source(holder: Holder) -> str:
    """Return what a holder's mount says that it is of, by which it is found again."""
    return f"uffdballoon-{holder.id}"


def mount_points(mountinfo: str, source: str) -> list[str]:
    """List where there is a mount of that source, by the text of /proc/PID/mountinfo."""
    points = []
    for line in mountinfo.split("\n"):
        where, _, what = line.partition(" - ")
        if what.split(" ")[1:2] == [source]:
            points += [_unescaped(point) for point in where.split(" ")[4:5]]
    return points


def _unescaped(path: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), path)


def _without(claims: tuple[Claim[V], ...], is_gone: IsGone) -> tuple[Claim[V], ...]:
    return tuple(claim for claim in claims if not is_gone(claim.holder))


def _claims(read: Any, value_of: Callable[[Any], V]) -> tuple[Claim[V], ...]:  # noqa: ANN401 - JSON
    return tuple(Claim(_holder(claim["holder"]), value_of(claim["value"])) for claim in read)


def _holder(read: Any) -> Holder:  # noqa: ANN401 - JSON
    return Holder(
        pid=_number(read["pid"], least=1),
        started_ticks=_number(read["started_ticks"]),
        id=_matching(_ID, read["id"]),
    )


def _pool(read: Any) -> Pool:  # noqa: ANN401 - JSON
    return Pool(
        before_pages=_number(read["before_pages"]),
        was_pages=_number(read["was_pages"]),
        to_pages=_number(read["to_pages"]),
        claims=_claims(read["claims"], lambda value: _number(value, least=-_MOST)),
    )


def _number(read: object, *, least: int = 0) -> int:
    # bool is an int, too, for isinstance().
    if type(read) is int and least <= read <= _MOST:
        return read
    raise ValueError("a number is none, or out of range")


def _matching(pattern: re.Pattern[str], read: object) -> str:
    if isinstance(read, str) and pattern.fullmatch(read):
        return read
    raise ValueError("a text is not as it should be")


def _require(what: str, *, holds: bool) -> None:
    if not holds:
        raise ValueError(what)
