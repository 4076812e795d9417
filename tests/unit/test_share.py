# SPDX-License-Identifier: GPL-2.0-or-later
"""share/: manual pages that render, and completions that complete."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools.share import PLACE, render

_FILES = render()
_PAGES = sorted(path for path in _FILES if path.endswith(".1"))
_BASH = PLACE / "bash-completion" / "completions" / "uffdballoon"


def test_files_are_what_the_commands_say_now() -> None:
    found = {
        str(file.relative_to(PLACE)): file.read_text(encoding="utf-8")
        for file in PLACE.rglob("*")
        if file.is_file()
    }
    assert found == _FILES, "run: make share"


@pytest.mark.parametrize("page", _PAGES)
def test_man_renders_a_page_without_a_warning(page: str) -> None:
    if os.environ.get("UFFDBALLOON_REQUIRE") != "1" and not shutil.which("man"):
        pytest.skip("no man here: apt-get install man-db")
    shown = subprocess.run(
        ["man", "--warnings", "--local-file", PLACE / page],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "LC_ALL": "C.UTF-8", "MANWIDTH": "80", "MANPAGER": "cat"},
    )
    assert shown.stderr == ""
    lines = shown.stdout.splitlines()
    assert Path(page).stem.upper() + "(1)" in lines[0]
    assert {"NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS"} <= set(lines)


def _completed(*words: str) -> list[str]:
    """Return what bash offers for the last word of a line."""
    line = " ".join(f"'{word}'" for word in words)
    script = (
        f"source '{_BASH}'; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; "
        '_uffdballoon_completion uffdballoon; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PATH": path},
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_bash_completes_a_verb() -> None:
    assert _completed("uffdballoon", "de") == ["deflate", "detach"]


def test_bash_completes_an_option_of_a_verb() -> None:
    assert _completed("uffdballoon", "attach", "--pol") == ["--policy"]


def test_bash_completes_the_word_of_an_option() -> None:
    assert _completed("uffdballoon", "attach", "--contract", "t") == ["told"]


@pytest.mark.parametrize(
    ("shell", "check", "script"),
    [
        ("fish", "--no-execute", "fish/vendor_completions.d/uffdballoon.fish"),
        ("zsh", "-n", "zsh/site-functions/_uffdballoon"),
    ],
)
def test_shells_read_their_completions(shell: str, check: str, script: str) -> None:
    if not shutil.which(shell):
        pytest.skip(f"no {shell} here")
    subprocess.run([shell, check, PLACE / script], check=True)
