# SPDX-License-Identifier: GPL-2.0-or-later
"""Enforcement shown on a real guest, start to finish; `uffdballoon scenario` runs them.

Each starts a QEMU of its own, attaches to it as to any other, and says whether
the policy kept what it promises.
"""
