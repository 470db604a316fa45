"""A Dockerfile."""

from __future__ import annotations

import json
import re
import shlex

from serving.export.facts import Facts, commented, only, settings_of, sums

from quantplan.serving.export.exported import File


def read(files: tuple[File, ...]) -> Facts:
    text = only(files)
    joined = re.sub(r"\\\n\s*", "", text)
    (labels,) = re.findall(r"^LABEL (.*)$", joined, re.MULTILINE)
    marks = dict(word.removeprefix("quantplan.").split("=", 1) for word in shlex.split(labels))
    assert marks == commented(text)
    (command,) = re.findall(r"^CMD (.*)$", joined, re.MULTILINE)
    (checked,) = [line for line in joined.splitlines() if "artifact.sha256" in line]
    lines = shlex.split(checked.removeprefix("RUN printf ").split(" > ")[0])[1:]
    return Facts(marks=marks, settings=settings_of(json.loads(command)[1:]), hashes=sums("\n".join(lines)))
