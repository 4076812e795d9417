# SPDX-License-Identifier: GPL-2.0-or-later
"""Everything that leaves the program by ``--json`` or over the control socket.

A field is a key, in this order. docs/json.md is made of these modules. msgspec resolves their
annotations while the program runs: all that is named there is really imported. ruff sees that as
long as no module of these has ``from __future__ import annotations``.
"""
