# SPDX-License-Identifier: GPL-2.0-or-later
"""What a host can do."""

from dataclasses import dataclass
from typing import Annotated

from uffdballoon.errors import ExitCode
from uffdballoon.model.records.doc import doc


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeFacts:
    """One thing that was tried."""

    name: Annotated[str, doc("what was tried")]
    ok: Annotated[bool, doc("whether it works")]
    detail: Annotated[str, doc("what was found, for a person")] = ""
    errno: Annotated[int | None, doc("errno of the call that failed; null: none did")] = None
    fix: Annotated[str, doc("what to do about it; may be empty")] = ""
    essential: Annotated[bool, doc("whether nothing works without it")] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorReport:
    """What works here, and what does not."""

    exit_code: Annotated[ExitCode, doc("0: the main job can be done; 3: not allowed; 4: it cannot")]
    probes: Annotated[tuple[ProbeFacts, ...], doc("each thing that was tried")]
