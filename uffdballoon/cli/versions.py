# SPDX-License-Identifier: GPL-2.0-or-later
"""What a report of a fault should begin with: versions, and what userfaultfd offers here."""

from __future__ import annotations

import platform

from uffdballoon import __version__
from uffdballoon.core.library import describe_library
from uffdballoon.errors import UffdballoonError
from uffdballoon.host.uffd import query_features


def version_lines() -> list[str]:
    """Return a line each of the command, the kernel, Python, the C library and userfaultfd."""
    host = platform.uname()
    return [
        f"uffdballoon {__version__}",
        f"{host.system} {host.release} {host.machine}",
        f"{platform.python_implementation()} {platform.python_version()}",
        describe_library(),
        f"userfaultfd: {_userfaultfd()}",
    ]


def _userfaultfd() -> str:
    try:
        known = query_features()
    except (UffdballoonError, OSError) as error:
        return f"cannot be asked: {error}"
    return ", ".join(feature.name for feature in known if feature.name)
