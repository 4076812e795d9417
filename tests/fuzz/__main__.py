# SPDX-License-Identifier: GPL-2.0-or-later
"""Fuzz what parses: ``python -m tests.fuzz [--runs N | --seconds S] [TARGET...]``.

Python by Atheris, C by libFuzzer (native/fuzz/), each target in a process of its own and for
an even share of the runs. What was found new goes to build/fuzz/; so does an input that broke
something. Exits with 1 when one did.
"""

from __future__ import annotations

import argparse
import gc
import re
import subprocess
import sys
from pathlib import Path
from types import FunctionType

from tests.fuzz.targets import TARGETS

_ROOT = Path(__file__).resolve().parents[2]
_SEEDS = Path(__file__).with_name("corpus")
_WORK = _ROOT / "build" / "fuzz"
_C_TARGETS = ("records", "log_lines")
_LONGEST_BYTES = 4098
_SLOWEST_S = 10
_DONE = re.compile(r"Done (\d+) runs in (\d+) second")


def _fuzz_here(name: str, arguments: list[str]) -> None:
    """Fuzz one Python target; never returns."""
    import atheris  # noqa: PLC0415 - of the group fuzz: not everybody has it

    # Function by function: its own way, by a loader, goes around that of an editable install.
    for function in gc.get_objects():
        if not isinstance(function, FunctionType):
            continue
        if (function.__module__ or "").startswith("uffdballoon."):
            atheris.instrument_func(function)
    atheris.Setup([name, *arguments], TARGETS[name])
    atheris.Fuzz()


def _command(name: str) -> list[str]:
    if name in _C_TARGETS:
        return [str(_WORK / "native" / "fuzz" / f"fuzz_{name}")]
    return [sys.executable, "-m", "tests.fuzz", "--here", name]


def _fuzz(name: str, limits: list[str]) -> bool:
    """Fuzz one target in a process of its own; False when something broke."""
    found = _WORK / "corpus" / name
    found.mkdir(parents=True, exist_ok=True)
    seeds = (_ROOT / "native/fuzz/corpus" if name in _C_TARGETS else _SEEDS) / name
    done = subprocess.run(
        [
            *_command(name),
            *limits,
            f"-max_len={_LONGEST_BYTES}",
            f"-timeout={_SLOWEST_S}",
            f"-artifact_prefix={_WORK}/{name}-",
            "-print_final_stats=0",
            str(found),
            str(seeds),
        ],
        cwd=_ROOT,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        check=False,
    )
    match = _DONE.search(done.stderr)
    told = f"{match[1]:>10} inputs in {match[2]:>5} s" if match else "stopped"
    print(f"{name:16} {told}, {len(list(found.iterdir()))} kept", flush=True)
    if done.returncode:
        print(done.stderr[-4000:], file=sys.stderr)
    return not done.returncode


def _names() -> list[str]:
    return [*_C_TARGETS, *TARGETS]


def _main() -> int:
    parser = argparse.ArgumentParser(prog="tests.fuzz")
    parser.add_argument("--runs", type=int, default=0, help="of all targets together")
    parser.add_argument("--seconds", type=int, default=0, help="for all targets together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="all, if none is named")
    options = parser.parse_args()
    names = options.targets or _names()
    limits = [f"-seed={options.seed}"]
    if options.runs:
        limits.append(f"-runs={-(-options.runs // len(names))}")
    if options.seconds or not options.runs:
        limits.append(f"-max_total_time={max(1, (options.seconds or 60) // len(names))}")
    broken = [name for name in names if not _fuzz(name, limits)]
    if broken:
        print(f"broken: {', '.join(broken)}; the inputs are in {_WORK}", file=sys.stderr)
    return bool(broken)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--here"]:
        _fuzz_here(sys.argv[2], sys.argv[3:])
    sys.exit(_main())
