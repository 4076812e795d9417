# SPDX-License-Identifier: GPL-2.0-or-later
"""What a person reads of a record; one file a subject."""
