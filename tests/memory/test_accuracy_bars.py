"""The bars of memory by device, on every row of the truth tables: scripts/accuracy.py from the outside."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = ROOT / "scripts" / "accuracy.py"


def _run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *args], capture_output=True, text=True, check=False, cwd=ROOT,
                          env={"PYTHONPATH": str(ROOT), "PATH": ""})  # fmt: skip


@pytest.fixture(scope="module")
def document(shared: Path) -> dict[str, object]:
    done = _run("--truth", str(shared / "truth"), "--models", str(shared / "facts" / "model_configs.json"), "--json",
                "--bars")  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    told: dict[str, object] = json.loads(done.stdout)
    return told


def test_no_bar_is_missed(document: dict[str, object]) -> None:
    assert document["bars_missed"] == {}


def test_every_row_is_predicted(document: dict[str, object]) -> None:
    tables = {(row["table"], row["category"]): row["rows"] for row in document["summary"]}  # type: ignore[attr-defined]
    assert tables["fit_cpu", "compute"] == 864
    assert tables["fit_cuda", "model"] == 496
    assert tables["serve_cuda", "used"] == 62
    assert tables["quantized_size", "model"] == 234


def test_context_and_weights_are_exact(document: dict[str, object]) -> None:
    for row in document["summary"]:  # type: ignore[attr-defined]
        if row["category"] in ("context", "model"):
            assert row["worst_mib"] < 0.02, row
        assert row["not_modelled"] == 0, row


def test_missing_tables_are_no_error(tmp_path: Path, shared: Path) -> None:
    plot = tmp_path / "plot.svg"
    done = _run("--truth", str(tmp_path), "--models", str(shared / "facts" / "model_configs.json"), "--bars", "--plot",
                str(plot))  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert plot.read_text().startswith("<svg")


def test_a_missed_bar_is_exit_4(tmp_path: Path, shared: Path) -> None:
    (tmp_path / "serve_cuda.csv").write_text(
        "model,quant,n_ctx,n_parallel,kv_unified,type_kv,n_gpu_layers,extra,used_mib,ready_s,buffers\n"
        "Qwen3-0.6B,Q4_K_M,8192,1,no,f16,99,,4000,0.4,CUDA0 KV buffer size = 900.00 MiB\n"
    )
    done = _run("--truth", str(tmp_path), "--models", str(shared / "facts" / "model_configs.json"), "--bars")
    assert done.returncode == 4
    assert "missed  context within 1 MiB" in done.stdout
