# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's command line and configuration files, cut into options."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

# QEMU, qemu-options.hx: the options that take no argument, those of older versions included.
_FLAG = re.compile(
    r"S|alt-grab|async-teardown|audio-help|ctrl-grab|curses|daemonize|enable-fips|"
    r"enable-hax|enable-kvm|enable-sync-profile|full-screen|h|help|jitdump|localtime|"
    r"mem-prealloc|no-acpi|no-fd-bootchk|no-frame|no-hpet|no-kvm|no-kvm-irqchip|"
    r"no-kvm-pit|no-kvm-pit-reinjection|no-quit|no-reboot|no-shutdown|no-user-config|"
    r"nodefaults|nodefconfig|nographic|old-param|only-migratable|perfmap|portrait|"
    r"preconfig|rtc-td-hack|s|sdl|semihosting|singlestep|snapshot|tdf|usb|version|"
    r"win2k-hack|xen-attach|xen-create|xen-domid-restrict"
)
# QEMU, system/vl.c: the key that what stands first, without one, is the value of.
_IMPLIED = {
    "machine": "type",
    "m": "size",
    "numa": "type",
    "object": "qom-type",
    "device": "driver",
    "accel": "accel",
    "name": "guest",
    "mon": "chardev",
    "chardev": "backend",
}
_ALIASES = {"M": "machine"}
_GROUPS = {"memory": "m"}  # QEMU, util/qemu-config.c: what a configuration file calls it
_LOOKS_LIKE_OPTION = re.compile(r"--?[A-Za-z][A-Za-z0-9-]*")
_STRTOSZ = re.compile(
    r"(?:0x(?P<hex>[0-9a-f]{1,16})|(?P<whole>\d{1,20})(?:\.(?P<part>\d{0,20}))?)(?P<unit>[bkmgtpe]?)",
    re.ASCII | re.IGNORECASE,
)
_UNITS = {unit: 10 * power for power, unit in enumerate("bkmgtpe")}
_SECTION = re.compile(r'\[\s*(?P<group>[^\s"\]]{1,63})(?: +"(?P<id>[^"]{1,63})")?\]')
_ENTRY = re.compile(r'\s*(?P<key>\S{1,63})\s*=\s*"(?P<value>[^"]{0,1023})"\s*')


@dataclass(frozen=True, slots=True)
class Option:
    """An option: ``values`` are its keys where it has such, ``text`` is the argument itself.

    ``is_doubtful``: what follows it may be its argument, or an option.
    """

    name: str
    text: str
    values: Mapping[str, str]
    is_doubtful: bool = False


def parse_options(arguments: Sequence[str]) -> list[Option]:
    """Cut a command line, without the program's name, into options (QEMU, system/vl.c)."""
    return list(_options(arguments))


def _options(arguments: Sequence[str]) -> Iterator[Option]:
    index = 0
    while index < len(arguments):
        argument = arguments[index]
        index += 1
        if not argument.startswith("-") or argument == "-":
            continue  # the image of a disk
        name = argument[2:] if argument.startswith("--") else argument[1:]
        name = _ALIASES.get(name, name)
        if _FLAG.fullmatch(name) or index == len(arguments):
            yield Option(name, "", {})
            continue
        value = arguments[index]
        if _LOOKS_LIKE_OPTION.fullmatch(value):
            yield Option(name, "", {}, is_doubtful=True)
            continue
        index += 1
        yield Option(name, value, split_keys(value, _IMPLIED.get(name, "")))


def split_keys(text: str, implied: str = "") -> dict[str, str]:
    """Read ``value,key=value,...`` or a JSON object; what is not understood has no keys.

    A comma in a value is doubled. A key without a value is switched on
    (QEMU, util/qemu-option.c and util/keyval.c).
    """
    if text.startswith("{"):
        return _json_keys(text)
    keys = {}
    parts = text.replace(",,", "\0").split(",")
    for number, part in enumerate(parts):
        key, equals, value = part.replace("\0", ",").partition("=")
        if equals:
            keys[key] = value
        elif number == 0 and implied:
            keys[implied] = key
        elif key:
            keys[key] = "on"
    return keys


def _json_keys(text: str) -> dict[str, str]:
    try:
        read = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return {
        key: ("on" if value else "off") if isinstance(value, bool) else str(value)
        for key, value in read.items()
        if isinstance(value, str | int | float)
    }


def parse_config(text: str) -> list[Option] | None:
    """Read a file of -readconfig into options; None when it is no such file.

    QEMU, util/qemu-config.c: qemu_config_foreach().
    """
    sections: list[tuple[str, dict[str, str]]] = []
    for line in text.split("\n"):
        if not line.strip() or line.startswith("#"):
            continue
        if section := _SECTION.match(line):
            group = section["group"]
            sections.append(
                (_GROUPS.get(group, group), {"id": section["id"]} if section["id"] else {})
            )
        elif (entry := _ENTRY.fullmatch(line)) and sections:
            sections[-1][1][entry["key"]] = entry["value"]
        else:
            return None
    return [Option(group, "", keys) for group, keys in sections]


def parse_strtosz(text: str) -> int | None:
    """Read a size as QEMU does, in bytes where it has no unit; None when it is none.

    Fractions and hexadecimal numbers are taken (QEMU, util/cutils.c: do_strtosz()).
    """
    match = _STRTOSZ.fullmatch(text.strip())
    if match is None:
        return None
    shift = _UNITS[match["unit"].lower() or "b"]
    if match["hex"]:
        return int(match["hex"], 16) << shift
    part = match["part"] or ""
    return (int(match["whole"] + part) << shift) // int(10 ** len(part))


def parse_mebibytes(text: str) -> int | None:
    """Read a size of -m or of a node's mem=, in MiB where it ends in a digit.

    QEMU, system/vl.c: parse_memory_options(); hw/core/numa.c: parse_numa_node().
    """
    return parse_strtosz(f"{text}M" if text[-1:].isdigit() else text)


def is_on(text: str) -> bool:
    return text in ("on", "yes", "true", "y")
