# SPDX-License-Identifier: GPL-2.0-or-later
"""Everything that leaves the program by ``--json`` or over the control socket.

A field is a key, in this order. docs/json.md is made of these modules. msgspec reads their
annotations while the program runs, so none of them may postpone its evaluation.
"""
