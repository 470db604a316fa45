"""Our verdict on a header against the engine's: what it refuses, we refuse."""

from __future__ import annotations

import importlib.util
import random
import re
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from quantplan.errors import QuantplanError
from quantplan.model.gguf_header import read_gguf_header

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "fuzz_gguf_header.py"
REFUSED = re.compile(r"gguf_init_from\w*: .*|data is not within")
OURS_ONLY = re.compile(r"control character|is not UTF-8")  # what the engine lets pass


@pytest.fixture(scope="module")
def fuzzer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_gguf_header", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.tools
def test_the_engine_agrees_on_mutated_headers(llama_bin: Path, tmp_path: Path, fuzzer: ModuleType) -> None:
    rng, path = random.Random(5), tmp_path / "m.gguf"
    agreed = {True: 0, False: 0}
    for i in range(200):
        path.write_bytes(fuzzer.mutate(rng))
        why = ""
        try:
            read_gguf_header(path)
        except QuantplanError as error:
            why = str(error)
        argv = [llama_bin / "llama-quantize", "--dry-run", path, "COPY"]
        env = {"GGML_NO_BACKTRACE": "1", "XDG_CONFIG_HOME": str(tmp_path)}
        done = subprocess.run(argv, capture_output=True, check=False, env=env)
        engine = REFUSED.search((done.stdout + done.stderr).decode("utf-8", "replace"))
        if engine is None and OURS_ONLY.search(why):
            continue
        assert bool(why) == (engine is not None), f"round {i}: we say {why or 'good'!r}, the engine {engine}"
        agreed[bool(why)] += 1
    assert min(agreed.values()) >= 40
