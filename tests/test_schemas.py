"""The schemas in data/schemas: valid themselves, and fresh where our own types say what a document holds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

ROOT = Path(__file__).resolve().parent.parent
SCHEMAS = sorted((ROOT / "data/schemas").glob("*.schema.json"))


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.name)
def test_a_schema_is_one_and_is_named_as_its_file(path: Path) -> None:
    schema = json.loads(path.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    name, version = path.name.removesuffix(".schema.json").rsplit("-", 1)
    assert schema["$id"] == f"quantplan/{name}/{version}"


def test_what_our_types_say_is_fresh() -> None:
    done = subprocess.run([sys.executable, ROOT / "scripts/write_schemas.py", "--check"], capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "stale: none\n"), done.stderr
