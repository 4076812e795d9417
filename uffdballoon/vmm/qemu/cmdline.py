# SPDX-License-Identifier: GPL-2.0-or-later
"""What QEMU's command line says of the guest's memory."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING

from uffdballoon.errors import UffdballoonError
from uffdballoon.vmm.qemu.options import (
    Option,
    is_on,
    parse_config,
    parse_mebibytes,
    parse_options,
    parse_strtosz,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_DEFAULT_RAM_BYTES = 128 << 20  # QEMU, hw/core/machine.c: default_ram_size
_RAM_ALIGN_BYTES = 8192  # QEMU, hw/core/machine.c: machine_set_mem(); before, system/vl.c
_MOST_NODES = 128  # QEMU, include/sysemu/numa.h: MAX_NODES
_OTHER_ARCHITECTURE = re.compile(r"qemu-system-(?!x86_64|i386)(\w+)")
# Not PurePath.suffix: a version has a dot in it, too.
_PVE = re.compile(r"\+pve\d+$", re.ASCII)
_Q35 = re.compile(r"q35|ubuntu-q35|pc-q35-.+")
_I440FX = re.compile(r"pc|ubuntu|pc-i440fx-.+|pc-[01]\..+|rhel[56]\..+")
_JSON = frozenset({"object", "machine", "numa", "m"})
# QEMU, system/vl.c: qemu_init(); the second is of before 5.0
_NO_USER_CONFIG = frozenset({"no-user-config", "nodefconfig"})
_ENCRYPTED = frozenset({"sev-guest", "sev-snp-guest", "tdx-guest"})


@dataclass(frozen=True, slots=True)
class Backend:
    """A memory backend that -object makes; ``size_bytes`` is None when it cannot be told."""

    kind: str
    size_bytes: int | None
    shared: bool
    path: str


@dataclass(frozen=True)
class MemoryOptions:
    """What is on the command line, and in the configuration files that it names.

    ``ram_bytes`` is of -m, None when that is unknown; ``machine`` is empty when that is.
    ``nodes`` maps the memory backends of NUMA nodes to the nodes' numbers;
    ``node_bytes`` are the sizes of nodes that share one block, in order of their numbers;
    ``doubts`` say why the rest may not be all of it.
    """

    machine: str
    ram_bytes: int | None
    slots: int = 0
    max_bytes: int | None = None
    moved_hole: bool = False
    nodes: Mapping[str, int] = field(default_factory=dict)
    node_bytes: tuple[tuple[int, int], ...] = ()
    node_count: int = 0
    backends: Mapping[str, Backend] = field(default_factory=dict)
    ram_backend: str = ""
    mem_path: str = ""
    moved_hole64: bool = False
    has_config: bool = False
    doubts: tuple[str, ...] = ()

    @property
    def has_slots(self) -> bool:
        """Whether memory can be plugged in."""
        return self.slots > 0 or (self.max_bytes or 0) > (self.ram_bytes or 0)

    @property
    def machine_type(self) -> str:
        """The machine without what Proxmox adds to its name (+pve0)."""
        return _PVE.sub("", self.machine)

    @property
    def is_q35(self) -> bool:
        return bool(_Q35.fullmatch(self.machine_type))

    @property
    def is_i440fx(self) -> bool:
        return bool(_I440FX.fullmatch(self.machine_type))


def parse_cmdline(
    arguments: Sequence[str],
    read_config: Callable[[str], str] | None = None,
    user_configs: Sequence[str] = (),
) -> MemoryOptions:
    """Read what of a command line, its program's name included, is about memory.

    ``read_config`` returns the text of a file of -readconfig, or raises UffdballoonError;
    without it none is read, and that is a doubt. What cannot be read is one as well.
    ``user_configs`` are files that are there and that QEMU may have read by itself, before its
    options (system/vl.c: qemu_read_default_config_file()); of several it is not known which.
    """
    reading = _Reading()
    options = parse_options(arguments[1:] if _is_program(arguments) else arguments)
    if not any(option.name in _NO_USER_CONFIG for option in options):
        for path in user_configs:
            reading.take_config(path, read_config, "QEMU's user")
        if len(user_configs) > 1:
            reading.doubts.append(f"which it read of {' and '.join(user_configs)} is not known")
    for option in options:
        reading.take(option, read_config)
    if arguments and (other := _OTHER_ARCHITECTURE.fullmatch(PurePath(arguments[0]).name)):
        reading.doubts.append(f"where a guest of architecture {other[1]} has its RAM is not known")
    return reading.result()


def _is_program(arguments: Sequence[str]) -> bool:
    return bool(arguments) and not arguments[0].startswith("-")


class _Reading:
    """Options as they come: later ones are merged into earlier ones, as QEMU does."""

    def __init__(self) -> None:
        self.memory: dict[str, str] = {}
        self.machine: dict[str, str] = {}
        self.backends: dict[str, Backend] = {}
        self.numa: list[Mapping[str, str]] = []
        self.mem_path = ""
        self.moved_hole64 = False
        self.has_config = False
        self.is_whole = True
        self.doubts: list[str] = []

    def take(self, option: Option, read_config: Callable[[str], str] | None) -> None:
        if option.is_doubtful:
            self.doubts.append(f"what follows -{option.name} may be its argument, or an option")
        if option.name in _JSON and option.text.startswith("{") and not option.values:
            self.doubts.append(f"the JSON of -{option.name} is not understood")
        match option.name:
            case "machine":
                self.machine.update(option.values)
            case "m":
                self.memory.update(option.values)
            case "object":
                self._take_object(option.values)
            case "numa":
                if option.values.get("type") == "node":
                    self.numa.append(option.values)
            case "mem-path":
                self.mem_path = option.text
            case "readconfig":
                self.take_config(option.text, read_config)
            case _:
                self._take_other(option)

    def take_config(
        self, path: str, read_config: Callable[[str], str] | None, read_by: str = "-readconfig"
    ) -> None:
        self.has_config = True
        why = "it was not read"
        try:
            options = parse_config(read_config(path)) if read_config is not None else None
            if read_config is not None:
                why = "it is no configuration file of QEMU"
        except UffdballoonError as error:
            options, why = None, error.why or str(error)
        if options is None:
            self.is_whole = False
            self.doubts.append(f"size and machine may stand in the file of {read_by} {path}: {why}")
            return
        for option in options:
            self.take(option, None)

    def _take_object(self, values: Mapping[str, str]) -> None:
        kind, name = values.get("qom-type", ""), values.get("id", "")
        if kind.startswith("memory-backend-"):
            self.backends[name] = Backend(
                kind=kind,
                size_bytes=parse_strtosz(values.get("size", "")),
                # QEMU, backends/hostmem-{memfd,shm}.c: theirs are shared unless they say not
                shared=is_on(values["share"])
                if "share" in values
                else kind in ("memory-backend-memfd", "memory-backend-shm"),
                path=values.get("mem-path", ""),
            )
        elif kind in _ENCRYPTED:
            self.doubts.append("the guest's memory is encrypted")

    def _take_other(self, option: Option) -> None:
        text = option.text
        if option.name == "set" and text.split(".")[0] in ("memory", "machine", "object", "numa"):
            self.doubts.append(f"-set {text} changes what other options say")
        elif option.name == "preconfig":
            self.doubts.append("with -preconfig the monitor says what NUMA nodes there are")
        elif option.name.startswith("xen-") or (
            option.name == "accel" and option.values.get("accel") == "xen"
        ):
            self.doubts.append("under Xen RAM is not QEMU's own")
        elif option.name == "global" and "pci-hole64-size" in str(option.values):
            self.moved_hole64 = True

    def result(self) -> MemoryOptions:
        if "xen" in self.machine.get("accel", "").split(":"):
            self.doubts.append("under Xen RAM is not QEMU's own")
        if any(key.startswith("memory.") for key in self.machine):
            self.doubts.append("-machine gives a size of RAM as well as -m may")
        if {"confidential-guest-support", "memory-encryption"} & self.machine.keys():
            self.doubts.append("the guest's memory is encrypted")
        nodes, sizes = self._nodes()
        return MemoryOptions(
            machine=self.machine.get("type", "pc" if self.is_whole else ""),
            ram_bytes=self._ram_bytes(),
            slots=parse_strtosz(self.memory.get("slots", "")) or 0,
            max_bytes=parse_strtosz(self.memory.get("maxmem", "")),
            moved_hole="max-ram-below-4g" in self.machine,
            nodes=nodes,
            node_bytes=sizes,
            node_count=len(self.numa),
            backends=self.backends,
            ram_backend=self.machine.get("memory-backend", ""),
            mem_path=self.mem_path,
            moved_hole64=self.moved_hole64
            or any(key.startswith(("sgx-epc", "cxl")) for key in self.machine),
            has_config=self.has_config,
            doubts=tuple(dict.fromkeys(self.doubts)),
        )

    def _ram_bytes(self) -> int | None:
        text = self.memory.get("size", "")
        size_bytes = parse_mebibytes(text) if text else 0
        if size_bytes is None:
            self.doubts.append(f"-m {text} is not understood")
        if size_bytes:
            return -(-size_bytes // _RAM_ALIGN_BYTES) * _RAM_ALIGN_BYTES
        if size_bytes is None or not self.is_whole:
            return None
        name = self.machine.get("memory-backend", "")
        if not name:
            return _DEFAULT_RAM_BYTES
        return self.backends[name].size_bytes if name in self.backends else None

    def _nodes(self) -> tuple[dict[str, int], tuple[tuple[int, int], ...]]:
        """Give each node its number: one without gets how many came before it.

        QEMU, hw/core/numa.c: parse_numa_node().
        """
        nodes: dict[str, int] = {}
        sizes: dict[int, int] = {}
        for count, values in enumerate(self.numa):
            number = parse_strtosz(values.get("nodeid", str(count)))
            if number is None or number >= _MOST_NODES:
                self.doubts.append("the number of a NUMA node is not understood")
                continue
            if "memdev" in values:
                nodes[values["memdev"]] = number
            elif "mem" in values:
                size_bytes = parse_mebibytes(values["mem"])
                if size_bytes is None:
                    self.doubts.append("the size of a NUMA node is not understood")
                sizes[number] = size_bytes or 0
        return nodes, tuple(sorted(sizes.items()))
