# SPDX-License-Identifier: GPL-2.0-or-later
"""Values that every layer speaks in: addresses, sizes, RAM blocks, touches.

Pure: nothing here asks the kernel or reads a file, so it runs on any machine.
"""
