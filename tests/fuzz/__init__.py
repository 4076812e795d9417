# SPDX-License-Identifier: GPL-2.0-or-later
"""Hostile input for everything that parses: `make fuzz` at length, the tests in short."""
