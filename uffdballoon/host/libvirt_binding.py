# SPDX-License-Identifier: GPL-2.0-or-later
"""libvirt's Python binding, an extra that need not be there."""

from __future__ import annotations

from importlib.util import find_spec

INSTALL = "pip install 'uffdballoon[libvirt]', built with libvirt-dev and pkg-config"


def lacking_modules() -> list[str]:
    """Return what cannot be imported of it; nothing is imported."""
    return [name for name in ("libvirt", "libvirt_qemu") if find_spec(name) is None]
