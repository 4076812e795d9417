# SPDX-License-Identifier: GPL-2.0-or-later
"""`python -m uffdballoon` is `uffdballoon`."""

from uffdballoon.cli.main import main

main()
