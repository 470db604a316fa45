"""A plan as one page of HTML that needs nothing else: no network, no font, no library. What it holds comes from a
recommend document and a grid of the planner; the page computes nothing but sums and words."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from quantplan import __version__
from quantplan.artifact.receipt import write_atomically
from quantplan.planner.grid import Grid
from quantplan.report.page_data import as_script, page_data
from quantplan.report.page_sections import explorer, head_of_page, sections

_SCRIPTS = ("page_format.js", "page_data.js", "page_memory.js", "page_front.js", "page.js")
_PATTERNS = """<svg class="hidden" aria-hidden="true" focusable="false"><defs>
<pattern id="reserve" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">
<path d="M0 3h6"/></pattern>
<pattern id="over" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(-45)">
<rect width="6" height="6"/><path d="M0 3h6"/></pattern>
</defs></svg>"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What a page is about: the `data` of a recommend document, the grid of its sliders, the command without them."""

    answer: Mapping[str, Any]
    grid: Grid
    base: str
    warnings: tuple[str, ...] = ()


def write_page(path: Path, subject: Subject) -> None:
    """The page as a file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page_html(subject))


def page_html(subject: Subject) -> str:
    """The page. Its policy lets nothing run or load but the script and the style inside."""
    answer = subject.answer
    style, script = _part("page.css"), "\n".join(_part(name) for name in _SCRIPTS)
    script = f"(() => {{\n{script}\n}})();\n"
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    data = page_data(subject.grid, base=subject.base, generates=not answer["plan"].get("embeddings", False))
    title = f"{answer['model']['id']}: plan"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body>
<a class="skip" href="#controls">Skip to the sliders</a>
{_PATTERNS}
{head_of_page(answer, subject.warnings)}
<main>
{explorer(subject.grid)}
{sections(answer)}
</main>
<footer>quantplan {escape(__version__)}, {escape(str(answer["plan"]["made_at"]))}. Every position of the sliders is what
<code>quantplan recommend</code> answers when told so; nothing here was loaded from anywhere.</footer>
<script type="application/json" id="data">{as_script(data)}</script>
<script>{script}</script>
</body>
</html>
"""


def _part(name: str) -> str:
    """A file of the page, as it is in the package."""
    return files("quantplan.report").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """How a policy names inline text."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
