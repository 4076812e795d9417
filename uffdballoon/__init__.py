# SPDX-License-Identifier: GPL-2.0-or-later
"""Hold a running QEMU guest to its virtio balloon, from the host."""

__version__ = "0.1.0"
