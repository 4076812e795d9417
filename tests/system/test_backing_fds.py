# SPDX-License-Identifier: GPL-2.0-or-later
"""Which fds of a process are of the file behind its RAM."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.needs_root

# Two new file systems, whose first files have the same inode number; one of them is mapped.
_TWINS = """
import json, mmap, os, subprocess, sys
from uffdballoon.host.procfs import read_mappings
from uffdballoon.model.ram import Backing, RamBlock
from uffdballoon.target.backing import fds_of_block

fds = []
for name in ("one", "other"):
    directory = os.path.join(sys.argv[1], name)
    os.mkdir(directory)
    subprocess.run(["mount", "-t", "tmpfs", "none", directory], check=True)
    fds.append(os.open(os.path.join(directory, "ram"), os.O_RDWR | os.O_CREAT))
    os.ftruncate(fds[-1], 1 << 20)
memory = mmap.mmap(fds[0], 1 << 20)
(mapping,) = (m for m in read_mappings(os.getpid()) if m.path.endswith("/one/ram"))
block = RamBlock("ram", mapping.span.start, 1 << 20, 4096, Backing.TMPFS, shared=True)
print(json.dumps({
    "inodes": [os.fstat(fd).st_ino for fd in fds],
    "wanted": fds[0],
    "found": sorted({file.fd for file in fds_of_block(os.getpid(), block)}),
}))
"""


def test_a_file_with_the_same_inode_number_elsewhere_is_another_one(tmp_path: Path) -> None:
    done = subprocess.run(
        ["unshare", "--mount", sys.executable, "-c", _TWINS, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["inodes"][0] == told["inodes"][1]
    # mmap has an fd of its own.
    assert told["wanted"] in told["found"]
    assert len(told["found"]) == 2
