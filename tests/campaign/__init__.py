# SPDX-License-Identifier: GPL-2.0-or-later
"""Managers and targets that end at any moment; short here, long by `make campaign`."""
