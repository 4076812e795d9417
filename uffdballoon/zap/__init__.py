# SPDX-License-Identifier: GPL-2.0-or-later
"""Make the host pages behind guest memory really go away."""
