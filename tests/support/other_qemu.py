# SPDX-License-Identifier: GPL-2.0-or-later
"""Unpack the QEMU of another release of Debian into build/, to run it by chroot(1).

``python -m tests.support.other_qemu RELEASE`` prints the directory with a qemu-system-x86_64 for
PATH. apt has lists and packages of its own there, and takes nothing for installed: what it
fetches is complete. Proxies are those of /etc/apt. Nothing is installed, no maintainer script run.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.chrooted import write_chrooted_qemu
from uffdballoon.errors import LabError
from uffdballoon.lab import debian

_PACKAGE = "qemu-system-x86"
_MIRROR = "http://deb.debian.org/debian"
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_BUILD = Path(__file__).parents[2] / "build" / "qemu"
_MERGED = ("bin", "sbin", "lib", "lib64")


def directory_of(release: str) -> Path:
    """Fetch and unpack the newest QEMU that a release has; raise LabError when apt cannot."""
    directory = _BUILD / release
    packages = _fetch(release, directory)
    names = "\n".join(package.name for package in packages)
    done = directory / "unpacked"
    if not done.exists() or done.read_text() != names:
        done.unlink(missing_ok=True)
        _unpack(packages, directory / "root")
        done.write_text(names)
    (directory / "bin").mkdir(exist_ok=True)
    program = directory / "bin" / "qemu-system-x86_64"
    write_chrooted_qemu(program, directory / "root")
    return program.parent


def _fetch(release: str, directory: Path) -> list[Path]:
    """Return the package with all that it depends on."""
    archives = directory / "archives"
    shutil.rmtree(archives, ignore_errors=True)  # older versions among them
    for made in (archives, directory / "lists"):
        (made / "partial").mkdir(parents=True, exist_ok=True)
    (directory / "status").touch()
    suites = {release, release.removesuffix("-backports")}
    (directory / "sources.list").write_text(
        "".join(f"deb [signed-by={_KEYRING}] {_MIRROR} {suite} main\n" for suite in suites)
    )
    settings = {
        "Dir::Etc::sourcelist": directory / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferences": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
        "Dir::State::lists": directory / "lists",
        "Dir::State::status": directory / "status",
        "Dir::State::extended_states": directory / "extended_states",
        "Dir::Cache::archives": archives,
        "Dir::Cache::pkgcache": "",
        "Dir::Cache::srcpkgcache": "",
        "Acquire::Languages": "none",
        "APT::Architecture": "amd64",
    }
    apt = ["apt-get", "-q", *debian.AS_CALLER]
    for name, value in settings.items():
        apt += ["-o", f"{name}={value}"]
    debian.run([*apt, "update"], f"apt cannot learn what {release} has")
    install = ["install", "--yes", "--no-install-recommends", "--download-only"]
    command = [*apt, *install, f"--target-release={release}", _PACKAGE]
    debian.run(command, f"the {_PACKAGE} of {release} cannot be fetched")
    return sorted(archives.glob("*.deb"))


def _unpack(packages: list[Path], root: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
    for name in ("dev", "proc", "sys", "tmp", *(f"usr/{merged}" for merged in _MERGED)):
        (root / name).mkdir(parents=True)
    for merged in _MERGED:
        (root / merged).symlink_to(f"usr/{merged}")
    for package in packages:
        tar = ["tar", "-x", "--keep-directory-symlink", "--no-same-owner", "-C", str(root)]
        with subprocess.Popen(
            ["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE
        ) as files:
            unpacked = subprocess.run(tar, stdin=files.stdout, check=False)
        if files.returncode or unpacked.returncode:
            raise LabError(f"{package} cannot be unpacked", why="dpkg-deb or tar has failed")


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{directory_of(sys.argv[1])}\n")
    except LabError as error:
        sys.exit(str(error))
