"""A comparison as one page of HTML that needs nothing else: the picture, the table, the warnings."""

from __future__ import annotations

from html import escape

from quantplan import __version__
from quantplan.report.comparison import Comparison
from quantplan.report.comparison_text import table

_STYLE = (
    "body{font-family:system-ui,sans-serif;margin:2rem auto;max-width:64rem;color:#222;padding:0 1rem}"
    "table{border-collapse:collapse;font-size:.875rem}th,td{padding:.3rem .6rem;border-bottom:1px solid #ddd;"
    "text-align:right;white-space:nowrap}th:first-child,td:first-child{text-align:left}svg{max-width:100%;height:auto}"
    ".scroll{overflow-x:auto}.off{color:#8a3b28}"
)


def comparison_html(found: Comparison, picture: str) -> str:
    """The page around an SVG."""
    heads, *rows = table(found)
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "\n".join(
        f"<tr{' class=off' if one.dominated_by else ''}>{''.join(f'<td>{escape(text)}</td>' for text in row)}</tr>"
        for one, row in zip(found.artifacts, rows, strict=True)
    )
    warnings = "".join(f"<p><strong>Warning:</strong> {escape(text)}</p>\n" for text in found.warnings)
    texts = f"Mean over {escape(', '.join(found.texts))}. " if found.texts else ""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(found.source)}</title><style>{_STYLE}</style></head>\n<body>\n"
        f"<h1>{escape(found.source)}</h1>\n{picture}{warnings}"
        f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>\n'
        f"<p>{texts}± is two standard errors. Blue points are worth their size. Red ones are not: a smaller artifact "
        f"is as good within the noise.</p>\n<p>quantplan {__version__}</p>\n</body></html>\n"
    )
