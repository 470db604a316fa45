"""Scans every *.jinja of a folder, as the template of a GGUF: what is above a note, and how long the slowest took.

python scripts/scan_templates.py FOLDER
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from quantplan.artifact.results import Severity
from quantplan.pipeline.scanning.template import scan_template


def main() -> int:
    """Prints a line a finding; exit status 4 where there is one above a note."""
    n, slowest, worst = 0, 0.0, 0
    for path in sorted(Path(sys.argv[1]).rglob("*.jinja")):
        started = time.monotonic()
        found = scan_template(
            path.read_text(encoding="utf-8"), file=path.name, where="tokenizer.chat_template"
        ).findings
        slowest, n = max(slowest, time.monotonic() - started), n + 1
        for one in found:
            print(f"{path.name}:{one.line}: {one.severity.value}: {one.message} [{one.rule}]")
            worst += one.severity is not Severity.NOTE
    print(f"{n} templates, {worst} findings above a note, slowest {slowest:.2f} s")
    return 4 if worst else 0


if __name__ == "__main__":
    sys.exit(main())
