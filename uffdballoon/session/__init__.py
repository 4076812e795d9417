# SPDX-License-Identifier: GPL-2.0-or-later
"""One attached target, from attach to detach; `session.py` is where to begin."""

from uffdballoon.session.looking import Looked, look_at
from uffdballoon.session.options import Holding, SessionOptions
from uffdballoon.session.session import Session

__all__ = ["Holding", "Looked", "Session", "SessionOptions", "look_at"]
