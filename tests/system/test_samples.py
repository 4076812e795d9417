# SPDX-License-Identifier: GPL-2.0-or-later
"""Each JSON has the keys and kinds of values that were promised; it may have more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support import samples
from tests.support.marks import REAL_QEMU

pytestmark = [*REAL_QEMU, pytest.mark.needs_kvm]

_RECORDED = Path(__file__).parents[1] / "data" / "json"
_BY_NAME = {"run_lengths", "orders", "arrivals", "host_nodes", "vcpus", "values"}
"""Objects whose keys are numbers or words of the day."""


def _shape(value: Any, key: str = "") -> Any:  # noqa: ANN401 - any JSON
    """Keep keys and kinds of values; of a list, the shape of its first item."""
    if isinstance(value, dict):
        if key in _BY_NAME:
            return {"any": "number"}
        return {name: _shape(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_shape(value[0])] if value else []
    if value is None or isinstance(value, bool):
        return str(value is None)
    return "number" if isinstance(value, int | float) else "string"


def _promised(shape: Any, recorded: Any) -> Any:  # noqa: ANN401 - any JSON
    """Leave out the keys that have come since."""
    if isinstance(shape, dict) and isinstance(recorded, dict):
        return {
            key: _promised(value, recorded[key]) for key, value in shape.items() if key in recorded
        }
    if isinstance(shape, list) and isinstance(recorded, list) and shape and recorded:
        return [_promised(shape[0], recorded[0])]
    return shape


def _since(event: dict[str, Any]) -> dict[str, str]:
    """Return the keys that events have had since, and nothing else."""
    return {} if event["verdict"] is None else {"gpa_hex": "string"}


def test_each_json_has_the_keys_of_before_there_were_records() -> None:
    for name, value in samples.take().items():
        recorded = json.loads((_RECORDED / f"{name}.json").read_text(encoding="utf-8"))
        if name == "events":
            by_kind = {(e["kind"], e["action"]): _shape(e) | _since(e) for e in recorded}
            told = {(e["kind"], e["action"]): _shape(e) for e in value}
            assert {kind: told[kind] for kind in by_kind} == by_kind
        elif name == "doctor":
            assert _shape(value["probes"][0]).keys() == _shape(recorded["probes"][0]).keys()
            assert value.keys() >= recorded.keys()
        else:
            shape, promised = _shape(value), _shape(recorded)
            assert _promised(shape, promised) == promised, name
