# SPDX-License-Identifier: GPL-2.0-or-later
"""Examples of use; see README.md."""
