# SPDX-License-Identifier: GPL-2.0-or-later
"""A running attach: its loop, and the socket that the other verbs talk to."""
