"""The bars of the speed model on the truth tables: scripts/speed_accuracy.py from the outside."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = ROOT / "scripts" / "speed_accuracy.py"


def _run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *args], capture_output=True, text=True, check=False, cwd=ROOT,
                          env={"PYTHONPATH": str(ROOT), "PATH": ""})  # fmt: skip


@pytest.fixture(scope="module")
def shown(shared: Path) -> str:
    done = _run("--truth", str(shared / "truth"), "--bars")
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    return done.stdout


def test_every_bar_is_held(shown: str) -> None:
    assert "NOT held" not in shown
    assert shown.count(": held") == 6  # five groups, and the ranges


def test_the_rows_are_all_there(shown: str) -> None:
    counts = {line.split(" | ")[0].strip("| "): int(line.split(" | ")[1]) for line in shown.splitlines()
              if line.startswith("| ") and not line.startswith("| rows")}  # fmt: skip
    assert counts["H200, all on the card (speed_h200.csv)"] == 28
    assert counts["partial, experts on the host, CPU (speed_h200.csv)"] == 5
    assert counts["public, chosen by the rule"] >= 110
    assert counts["H200, all on the card (our own)"] == 49


def test_a_missed_bar_is_exit_4(tmp_path: Path) -> None:
    (tmp_path / "speed_h200.csv").write_text(
        "model,quant,device,args,n_prompt,n_gen,n_depth,tokens_per_s,stddev\n"
        "Llama-3.1-8B,Q4_K_M,H200,-ngl 99,0,64,0,100.0,4.01\n"
    )
    done = _run("--truth", str(tmp_path), "--bars")
    assert done.returncode == 4
    assert "NOT held" in done.stdout
