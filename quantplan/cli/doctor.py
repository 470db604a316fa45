"""`quantplan doctor`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from quantplan.cli.options import emit, json_option


@click.command("doctor", epilog="Example: quantplan doctor --model Qwen3-8B-Q4_K_M.gguf --port 8080")
@click.option("--model", type=click.Path(exists=True, path_type=Path), help="A model file, or a folder to build from.")
@click.option("--port", type=click.IntRange(1, 65535), default=8080, show_default=True, help="The server's port.")
@json_option
def command(model: Path | None, port: int, as_json: bool) -> int:
    """What on this machine would break a plan or slow it down, why, and the command that mends it. Changes nothing.
    Exits with 4 when something would break a plan."""
    from quantplan.hardware.detect import detect_host
    from quantplan.hardware.doctor import CHECKS, diagnose
    from quantplan.hardware.examine import examine, installed_toolchain
    from quantplan.hardware.finding import Severity
    from quantplan.report.hardware import describe_findings

    folder = (model if model.is_dir() else model.parent) if model else None
    host, tools = detect_host(models_folder=folder), installed_toolchain()
    model_bytes, build_bytes = _sizes(model) if model else (None, None)
    now = examine(host, env=os.environ, toolchain=tools, port=port, model_bytes=model_bytes, build_bytes=build_bytes)
    findings = diagnose(now)
    ok = not any(found.severity is Severity.BREAKS for found in findings)
    data = {
        "findings": findings,
        "checks": list(CHECKS),
        "cuda": now.cuda,
        "engine": now.engine,
        "settings": now.settings,
    }
    text = describe_findings(findings, n_checks=len(CHECKS), versions=now.cuda)
    emit("doctor", data, as_json=as_json, text=text, ok=ok, engine=tools.engine() if tools else None)
    return 0 if ok else 4


def _sizes(model: Path) -> tuple[int, int | None]:
    """(bytes of the model, bytes that a build of it adds): a copy in 16 bit and the largest preset, Q8_0, 34 of 64."""
    if model.is_file():
        return model.stat().st_size, None
    total = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    return total, total + total * 34 // 64
