# SPDX-License-Identifier: GPL-2.0-or-later
"""Write share/, manual pages and completions for shells: ``python -m tools.share``, ``make share``.

They are in the repository, since whoever builds a wheel need not have what the command imports.
"""

from __future__ import annotations

from pathlib import Path

from click.shell_completion import get_completion_class

from tools.man_pages import man_pages
from uffdballoon import __version__
from uffdballoon.cli.main import COMPLETES, cli

PLACE = Path(__file__).resolve().parents[1] / "share"

_NAME = "uffdballoon"
_COMPLETIONS = {
    "bash": f"bash-completion/completions/{_NAME}",
    "fish": f"fish/vendor_completions.d/{_NAME}.fish",
    "zsh": f"zsh/site-functions/_{_NAME}",
}
_COMPDEF = f"#compdef {_NAME}\n"  # zsh asks for it on the first line
_HEAD = (
    "# SPDX-License-Identifier: GPL-2.0-or-later\n"
    "# Made by `make share`, by click's templates. Do not edit.\n"
)


def render() -> dict[str, str]:
    """Return the text of each file by its path below share/."""
    pages = man_pages(cli, _NAME, __version__)
    files = {f"man/man1/{name}": text for name, text in pages.items()}
    return files | {path: _completion(shell) for shell, path in _COMPLETIONS.items()}


def _completion(shell: str) -> str:
    kind = get_completion_class(shell)
    assert kind is not None
    completion = kind(cli, {}, _NAME, COMPLETES)
    script = (completion.source_template % completion.source_vars()).strip() + "\n"
    if script.startswith(_COMPDEF):
        return _COMPDEF + _HEAD + script.removeprefix(_COMPDEF)
    return _HEAD + script


def main() -> None:
    files = render()
    for path, text in files.items():
        file = PLACE / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    for file in PLACE.rglob("*"):
        if file.is_file() and str(file.relative_to(PLACE)) not in files:
            file.unlink()


if __name__ == "__main__":
    main()
