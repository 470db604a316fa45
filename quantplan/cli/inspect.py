"""`quantplan inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quantplan.cli.options import emit, json_option, save_tables, table_options

if TYPE_CHECKING:
    from quantplan.model.facts import ModelFacts
    from quantplan.model.gguf_header import GgufHeader


@click.command("inspect", epilog="Example: quantplan inspect meta-llama/Llama-3.1-8B-Instruct")
@click.argument("model")
@click.option("--tensors", is_flag=True, help="List every tensor with its shape and type.")
@click.option("--verify", is_flag=True, help="Ask llama-quantize for every preset, on a file without weights.")
@table_options
@json_option
def command(
    model: str, tensors: bool, verify: bool, csv_file: Path | None, parquet_file: Path | None, as_json: bool
) -> int:
    """What MODEL is, and its exact size at every preset, before anything is downloaded.

    MODEL is a GGUF, a Hugging Face folder or config.json, org/name on the hub, or a catalog name.
    """
    from quantplan.report.inspection import inspection, inspection_text, size_rows, sizes

    facts, header, vision = _read(model)
    data: dict[str, Any] = inspection(facts, sizes(facts, header), tensors=tensors, vision=vision)
    csv = save_tables(size_rows(data), csv_file=csv_file, parquet_file=parquet_file)
    text = csv or inspection_text(facts, data)
    if verify:
        data["differences"] = _verify(facts)
        text += "" if csv else "\n\n" + _verified_text(data["differences"], len(data["sizes"]))
    ok = not data.get("differences")
    emit("inspect", data, as_json=as_json, text=text, warnings=facts.warnings, ok=ok)
    return 0 if ok else 4


def _read(model: str) -> tuple[ModelFacts, GgufHeader | None, dict[str, int] | None]:
    """The facts; the GGUF header where MODEL is one; what a checkpoint has of a vision tower."""
    from quantplan.model import catalog
    from quantplan.model.read import convert, facts_of
    from quantplan.model.resolve import Catalog, CheckpointModel, GgufModel, resolve_model

    found = resolve_model(model, catalog=Catalog(find=catalog.find, near=catalog.near))
    header = found.header if isinstance(found, GgufModel) else None
    vision = None
    if isinstance(found, CheckpointModel):
        converted = convert(found)
        if converted.vision_parameters:
            vision = {"parameters": converted.vision_parameters, "bytes": converted.vision_bytes or 0}
    return facts_of(found), header, vision


def _verify(facts: ModelFacts) -> list[dict[str, Any]]:
    from dataclasses import asdict

    from quantplan.llama.toolchain import find_toolchain
    from quantplan.quant.presets import PRESETS
    from quantplan.rehearsal.verify_presets import verify_presets

    program = find_toolchain().programs["llama-quantize"]
    return [asdict(one) for one in verify_presets(facts, tuple(PRESETS), program=program)]


def _verified_text(differences: list[dict[str, Any]], n_presets: int) -> str:
    if not differences:
        return f"llama-quantize agrees on all {n_presets} presets, with and without an imatrix."
    rows = (f"  {d['preset']}{' with an imatrix' if d['with_imatrix'] else ''}: {d['why']}" for d in differences)
    return "\n".join((f"llama-quantize differs on {len(differences)}:", *rows))
