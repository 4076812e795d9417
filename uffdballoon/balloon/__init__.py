# SPDX-License-Identifier: GPL-2.0-or-later
"""Enforcement: the order in which windows, ledger and zaps must happen."""
