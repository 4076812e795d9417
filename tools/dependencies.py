# SPDX-License-Identifier: GPL-2.0-or-later
"""What pyproject.toml says of dependencies: ``dependencies.py [--build] [--lowest | --check]``.

Prints those at runtime and of the extra ``plots`` as pip reads them, or with --build those that
building takes; with --lowest as constraints to the lowest versions allowed. With --check the Python
that runs this must have those versions and an uffdballoon of its own: exits with 1 when it does
not. It needs the standard library only, since it runs in bare environments.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import re
import sys
import tomllib
from pathlib import Path

_PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
# A marker or an extra would hide what is installed, so none is understood.
_RANGE = re.compile(r"(?P<name>[\w.-]+) *>= *(?P<lowest>\d+(\.\d+)*)( *,[^;]*)?")
_TRAILING_ZEROS = re.compile(r"(\.0)+$")


def lowest_version(requirement: str) -> tuple[str, str]:
    """Give name and lowest version of ``NAME>=VERSION``; raises ValueError for anything else."""
    found = _RANGE.fullmatch(requirement)
    if found is None:
        raise ValueError(f"{requirement!r} does not begin with NAME>=VERSION")
    return found["name"], found["lowest"]


def is_same_version(one: str, other: str) -> bool:
    """Tell whether pip takes both for the same version: 2.1 is 2.1.0."""
    return _TRAILING_ZEROS.sub("", one) == _TRAILING_ZEROS.sub("", other)


def _declared(*, to_build: bool) -> list[str]:
    """Return what is required; of the extras libvirt's is left out, which few hosts can build."""
    pyproject = tomllib.loads(_PYPROJECT.read_text(encoding="utf-8"))
    if to_build:
        return list(pyproject["build-system"]["requires"])
    project = pyproject["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["plots"]]


def _faults() -> list[str]:
    faults = []
    for name, lowest in map(lowest_version, _declared(to_build=False)):
        installed = importlib.metadata.version(name)
        print(f"{name} {installed}")
        if not is_same_version(installed, lowest):
            faults.append(f"{name} {installed} is installed, the lowest allowed is {lowest}")
    spec = importlib.util.find_spec("uffdballoon")
    origin = spec.origin if spec else None
    if origin is None or not Path(origin).is_relative_to(sys.prefix):
        faults.append(f"uffdballoon comes from {origin}, not from {sys.prefix}")
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument("--lowest", action="store_true")
    asked.add_argument("--check", action="store_true")
    parser.add_argument("--build", action="store_true")
    options = parser.parse_args()
    if options.build and options.check:
        parser.error("what was built with is installed nowhere")
    if options.check:
        faults = _faults()
        print(*faults, sep="\n", end="\n" if faults else "", file=sys.stderr)
        return 1 if faults else 0
    for requirement in _declared(to_build=options.build):
        print("{}=={}".format(*lowest_version(requirement)) if options.lowest else requirement)
    return 0


if __name__ == "__main__":
    sys.exit(main())
