# SPDX-License-Identifier: GPL-2.0-or-later
"""Two guests, storms of violations, honest cycles and restarts, for minutes: `make soak`."""
