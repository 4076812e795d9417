# SPDX-License-Identifier: GPL-2.0-or-later
"""What the Linux guest boots: Debian's cloud kernel and an initramfs of our own.

The packages are fetched once; what is needed of them is kept in the cache, by their version. The
initramfs is put together for every guest: that takes hundredths of a second, and nothing stale is
ever booted.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import lzma
import os
import re
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from uffdballoon.errors import LabError
from uffdballoon.lab import debian
from uffdballoon.lab.guestwork import find_guestwork
from uffdballoon.lab.initramfs import Initramfs

if TYPE_CHECKING:
    from collections.abc import Iterator

_KERNEL = "linux-image-cloud-amd64"
_KERNEL_WITH_VERSION = r"linux-image-[0-9]\S*"
_BUSYBOX = "busybox-static"

_DRIVERS = ("virtio_pci", "virtio_balloon")
"""What is loaded at boot, in this order, each after the modules that it depends on."""

_AT_HAND = ("virtio_mem",)
"""What is there to be loaded by those who want it."""

_MODULE = re.compile(r"/drivers/virtio/(\w+)\.ko(\.xz)?$")

_INIT = """\
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
grep -q nodrivers /proc/cmdline || for module in {modules}; do
    insmod "/lib/modules/$module.ko"
done
exec guestwork agent /dev/ttyS1
"""


@dataclass(frozen=True, slots=True)
class LinuxPackages:
    """What was taken from the packages, each file by itself in ``directory``."""

    directory: Path

    @property
    def kernel(self) -> Path:
        return self.directory / "vmlinuz"

    @property
    def busybox(self) -> Path:
        return self.directory / "busybox"

    def module(self, name: str) -> Path:
        return self.directory / f"{name}.ko"


def find_packages() -> LinuxPackages:
    """Fetch and unpack what the guest is made of, unless that was done before.

    The cache is UFFDBALLOON_CACHE, or uffdballoon/ in XDG_CACHE_HOME or ~/.cache. Other versions
    are fetched when apt's lists have changed. Raises LabError when apt, the network or dpkg fail
    and there is nothing in the cache.
    """
    cache = _cache_directory()
    with _locked(cache):
        last = _read_last(cache)
        if last is not None and last.lists == debian.lists_age():
            return LinuxPackages(cache / last.directory)
        try:
            directory = _fetch_after_update(cache)
        except LabError:
            if last is None:
                raise
            directory = last.directory  # what worked before still does
        _write_last(cache, _Last(debian.lists_age(), directory))
        return LinuxPackages(cache / directory)


def build_initramfs(packages: LinuxPackages, *, next_kernel: bool = False) -> bytes:
    """Put together busybox, the guest's program, the drivers, and what runs first.

    With ``next_kernel`` the kernel is in it as well, with an initramfs, for kexec.
    """
    modules = load_order(packages, _DRIVERS)
    archive = Initramfs()
    for name in ("bin", "boot", "dev", "lib", "lib/modules", "proc", "root", "sys", "tmp"):
        archive.add_directory(name)
    archive.add_program("init", _INIT.format(modules=" ".join(modules)).encode())
    archive.add_program("bin/busybox", packages.busybox.read_bytes())
    archive.add_program("bin/guestwork", find_guestwork().read_bytes())
    for name in dict.fromkeys([*modules, *load_order(packages, _AT_HAND)]):
        archive.add_program(f"lib/modules/{name}.ko", packages.module(name).read_bytes())
    if next_kernel:
        archive.add_program("boot/vmlinuz", packages.kernel.read_bytes())
        archive.add_program("boot/initramfs", build_initramfs(packages))
    return archive.to_bytes()


def load_order(packages: LinuxPackages, wanted: tuple[str, ...]) -> list[str]:
    """List modules so that each comes after those it depends on.

    A module that has no file is taken for one that is built into the kernel.
    """
    order: list[str] = []

    def add(name: str) -> None:
        if name in order or not packages.module(name).exists():
            return
        for needed in _dependencies(packages.module(name).read_bytes()):
            add(needed)
        order.append(name)

    for name in wanted:
        add(name)
    return order


def _dependencies(module: bytes) -> list[str]:
    """Read them from the module's .modinfo: strings that end in NUL."""
    found = re.search(rb"\0depends=([^\0]+)\0", module)
    return found[1].decode().split(",") if found else []


def _cache_directory() -> Path:
    named = os.environ.get("UFFDBALLOON_CACHE")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "uffdballoon"


@contextlib.contextmanager
def _locked(cache: Path) -> Iterator[None]:
    """Have the cache to oneself; whoever ends lets go of it."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(cache / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise LabError(
            f"{cache} cannot be written",
            why=error.strerror or "",
            hint="set UFFDBALLOON_CACHE to a directory that can",
            errno=error.errno,
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class _Last:
    """What was used last, and which state of apt's lists told to use it."""

    lists: str
    directory: str


def _read_last(cache: Path) -> _Last | None:
    """Read it, if it is still there."""
    try:
        last = _Last(**json.loads((cache / "last.json").read_text()))
    except (FileNotFoundError, TypeError, ValueError):
        return None
    return last if (cache / last.directory).is_dir() else None


def _write_last(cache: Path, last: _Last) -> None:
    part = cache / "last.json.part"
    part.write_text(json.dumps(asdict(last)))
    part.rename(cache / "last.json")


def _fetch_after_update(cache: Path) -> str:
    """Fetch, with apt's lists brought up to date if it does not succeed at once.

    They may be missing, or name versions that have been replaced on the servers.
    """
    with tempfile.TemporaryDirectory(dir=cache, prefix="new-") as scratch:
        try:
            return _fetch(cache, Path(scratch))
        except LabError:
            complaints = debian.update_lists()
        try:
            return _fetch(cache, Path(scratch))
        except LabError as error:
            why = f"{error.why} {complaints}".strip()
            raise LabError(error.what, why=why, hint=error.hint) from error


def _fetch(cache: Path, new: Path) -> str:
    kernel = debian.newest_dependency(_KERNEL, _KERNEL_WITH_VERSION)
    packages = debian.look_up([kernel, _BUSYBOX], new)
    directory = cache / "+".join(package.file_name.removesuffix(".deb") for package in packages)
    if directory.is_dir():
        return directory.name
    files = new / "files"
    shutil.rmtree(files, ignore_errors=True)
    files.mkdir()
    for package in packages:
        _unpack(debian.download(package, new), files)
    for name in ("vmlinuz", "busybox"):
        if not (files / name).exists():
            raise LabError(f"There is no {name} in Debian's packages", why=directory.name)
    files.rename(directory)
    return directory.name


def _unpack(package: Path, files: Path) -> None:
    for path, content in debian.extract(package, lambda path: _file_name(path) is not None):
        name = _file_name(path)
        assert name is not None
        (files / name).write_bytes(lzma.decompress(content) if path.endswith(".xz") else content)


def _file_name(path: str) -> str | None:
    """Name the file in the cache for one in a package, if it is needed."""
    if path.startswith("boot/vmlinuz-"):
        return "vmlinuz"
    if path.endswith("bin/busybox"):
        return "busybox"
    found = _MODULE.search(path)
    return f"{found[1]}.ko" if found else None
