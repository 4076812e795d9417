# SPDX-License-Identifier: GPL-2.0-or-later
"""Measurements that compare with a baseline in the same run; `uffdballoon bench` runs them."""
