# SPDX-License-Identifier: GPL-2.0-or-later
"""What a field means, beside its type."""

import msgspec


def doc(description: str) -> msgspec.Meta:
    """Describe a field: what it counts, and in which unit; for docs/json.md."""
    return msgspec.Meta(description=description)
