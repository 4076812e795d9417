# SPDX-License-Identifier: GPL-2.0-or-later
"""Fetch Debian packages by apt and take single files out of them; nothing is installed."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from uffdballoon.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_LISTS = Path("/var/lib/apt/lists")

# The package files are in a directory of root's: apt would warn that its own user cannot go there.
AS_CALLER = ("-o", "APT::Sandbox::User=root")


@dataclass(frozen=True, slots=True)
class Package:
    """A package as apt would fetch it now; ``file_name`` has its version in it."""

    name: str
    file_name: str


def lists_age() -> str:
    """Return what becomes different when apt learns of other versions."""
    try:
        return str(_LISTS.stat().st_mtime_ns)
    except FileNotFoundError:
        return "none"


def update_lists() -> str:
    """Have apt learn what there is, and return what it complains about.

    It makes do with the servers that it can reach, if any. Raises LabError when it may not.
    """
    command = ["apt-get", "update", "-q"]
    return _complete(command, "apt cannot learn which packages there are").stderr.strip()


def newest_dependency(name: str, pattern: str) -> str:
    """Name the package that ``name`` depends on and that matches; LabError when there is none."""
    text = run(["apt-cache", "depends", name], f"apt knows no package {name}")
    found = re.search(rf"Depends: ({pattern})$", text, re.MULTILINE)
    if found is None:
        raise LabError(f"{name} depends on no {pattern}", why=text.strip())
    return found[1]


def look_up(names: list[str], empty_directory: Path) -> list[Package]:
    """Ask which files hold these packages; raise LabError when apt does not know them."""
    command = ["apt-get", "download", "--print-uris", *names]
    text = run(command, f"apt knows no package {' or '.join(names)}", empty_directory)
    files = re.findall(r"^'[^']+' (\S+)", text, re.MULTILINE)
    return [Package(name, _of(name, files)) for name in names]


def download(package: Package, directory: Path) -> Path:
    """Fetch a package into a directory; raise LabError when apt cannot."""
    command = ["apt-get", "download", "-q", *AS_CALLER, package.name]
    run(command, f"{package.name} cannot be fetched", directory)
    return directory / package.file_name


def extract(package: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Yield path (without a leading ./) and content of the files that are wanted."""
    with _spawn(["dpkg-deb", "--fsys-tarfile", str(package)]) as stream:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                path = member.name.removeprefix("./")
                content = archive.extractfile(member) if wanted(path) else None
                if content is not None:
                    yield path, content.read()
        while stream.read(1 << 20):
            pass  # or dpkg-deb would end by SIGPIPE


def _of(name: str, files: list[str]) -> str:
    for file in files:
        if file.startswith(f"{name}_"):
            return file
    raise LabError(f"apt names no file of {name}", why=" ".join(files))


def run(command: list[str], what: str, directory: Path | None = None) -> str:
    """Run one of Debian's programs and return what it prints; raise LabError, ``what``."""
    return _complete(command, what, directory).stdout


def _complete(
    command: list[str], what: str, directory: Path | None = None
) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        result = subprocess.run(
            command,
            check=False,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            cwd=directory,
            env=environment,
        )
    except FileNotFoundError as error:
        raise _no_debian(command[0]) from error
    if result.returncode:
        raise LabError(
            what,
            why=result.stderr.strip() or f"{command[0]} ended with {result.returncode}",
            hint="look at the network and /etc/apt, then run, as root: apt-get update",
        )
    return result


@contextlib.contextmanager
def _spawn(command: list[str]) -> Iterator[IO[bytes]]:
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
    except FileNotFoundError as error:
        raise _no_debian(command[0]) from error
    with process:
        assert process.stdout is not None
        yield process.stdout
    if process.returncode:
        raise LabError(
            f"{command[-1]} cannot be unpacked",
            why=f"{command[0]} ended with {process.returncode}",
            hint="remove the file; it is fetched again",
        )


def _no_debian(program: str) -> LabError:
    return LabError(
        f"There is no {program}",
        why="the Linux guest is made of Debian's packages",
        hint="use a Debian or Ubuntu machine",
    )
