"""A command as a POSIX shell script has it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

# Nothing that is set outside speaks for a flag (common/arg.cpp reads LLAMA_ARG_* and a settings file).
HEAD = """\
#!/bin/sh
set -eu
for name in $(env | sed -n 's/^\\(LLAMA_[A-Z0-9_]*\\)=.*/\\1/p'); do unset "$name"; done
export XDG_CONFIG_HOME=/nonexistent GGML_NO_BACKTRACE=1
"""


def command(argv: Sequence[str]) -> str:
    """`exec` of a command over several lines: the program with what comes before its first flag, then a flag a line."""
    lines, line = [], "exec"
    for index, word in enumerate(argv):
        if index and re.match(r"--\w", word):
            lines.append(line)
            line = f"  {shlex.quote(word)}"
        else:
            line += f" {shlex.quote(word)}"
    return " \\\n".join([*lines, line])
