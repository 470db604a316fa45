"""Bandwidth through the engine: the empty model is one that the engine takes, and what it prints is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from quantplan.hardware.measure import CannotMeasure
from quantplan.hardware.measure_engine import measure_device, write_wide_model
from quantplan.llama.types import Completed

LAYER_BYTES = 2 * (4 * 4096 * 4096 + 3 * 4096 * 14336)


class Prints:
    """A runner that answers with a text and a status, and remembers what was asked."""

    def __init__(self, text: str, returncode: int = 0) -> None:
        self.text, self.returncode, self.argv = text, returncode, ()

    def __call__(self, argv: Sequence[str], *, timeout_s: float | None = None, **_: object) -> Completed:
        assert timeout_s is not None
        self.argv = tuple(argv)
        lines = tuple(self.text.splitlines())
        return Completed(
            argv=self.argv, returncode=self.returncode, seconds=0, peak_rss_bytes=None, stdout=lines, stderr=()
        )


def test_tokens_a_second_become_bytes_a_second() -> None:
    run = Prints('warming up\n[{"n_gen": 32, "samples_ts": [100.0, 110.0, 90.0]}]')
    found = measure_device(("llama-bench",), "CUDA1", run=run, n_layer=2)
    assert (found.what, found.bytes_per_s, found.median_bytes_per_s) == ("CUDA1", 220 * LAYER_BYTES, 200 * LAYER_BYTES)
    assert run.argv[3:7] == ("-ngl", "99", "-dev", "CUDA1")


@pytest.mark.parametrize(("text", "returncode"), [("", 0), ("[{}]", 0), ("no device found", 1)])
def test_an_engine_that_does_not_answer(text: str, returncode: int) -> None:
    with pytest.raises(CannotMeasure, match="the bandwidth of CUDA0 cannot be measured"):
        measure_device(("llama-bench",), "CUDA0", run=Prints(text, returncode), n_layer=1)


def test_the_model_is_a_hole(tmp_path: Path) -> None:
    path = tmp_path / "wide.gguf"
    assert write_wide_model(path, n_layer=1) == LAYER_BYTES
    assert path.stat().st_size > LAYER_BYTES
    assert path.stat().st_blocks * 512 < 1024**2


@pytest.mark.tools
def test_the_engine_takes_the_model(toolchain: Any) -> None:
    found = measure_device(toolchain.programs["llama-bench"], "CPU", n_layer=1)
    assert (found.what, found.n_runs) == ("CPU", 5)
    assert found.bytes_per_s > 10**8
    assert found.how == f"llama-bench, F16, {LAYER_BYTES // 1024**2} MiB a token"
