"""Every preset of `llama-quantize --help` against the tool's own dry run, on a model of each kind of the catalog.
With QUANTPLAN_ALL_MODELS set, on all of its models."""

from __future__ import annotations

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from quantplan.llama.dry_run import dry_run, parse_dry_run, write_smallest_imatrix
from quantplan.model import catalog
from quantplan.model.hf_config import header_from_config
from quantplan.model.safetensors_header import SafetensorsTensor
from quantplan.quant.presets import PRESETS, PresetRefused, apply_preset
from quantplan.rehearsal.verify_presets import ask_tool, difference
from quantplan.rehearsal.weightless import write_weightless
from quantplan.units import MIB

pytestmark = pytest.mark.tools


def one_of_each_architecture() -> list[str]:
    """The first model of the catalog of each, and whatever has a recipe of its own by its number of layers."""
    found: dict[object, str] = {}
    for entry in catalog.entries():
        config = entry.config.get("text_config", entry.config)
        found.setdefault(
            (entry.config.get("model_type"), isinstance(config, dict) and bool(_EXPERTS & {*config})), entry.id
        )
    return [*found.values(), *(model for model in _ALSO if model not in found.values())]


_EXPERTS = {"num_local_experts", "num_experts", "n_routed_experts"}
_ALSO = ("meta-llama/Llama-3.1-70B-Instruct", "Qwen/Qwen3-0.6B", "mistralai/Mixtral-8x7B-Instruct-v0.1")
MODELS = [one.id for one in catalog.entries()] if os.environ.get("QUANTPLAN_ALL_MODELS") else one_of_each_architecture()
OPTIONS: dict[str, tuple[tuple[str, ...], dict[str, object]]] = {
    "pure": (("--pure",), {"pure": True}),
    "leave-output": (("--leave-output-tensor",), {"leave_output_tensor": True}),
    "ends": (
        ("--output-tensor-type", "q5_k", "--token-embedding-type", "q8_0"),
        {"output_tensor_type": "q5_k", "token_embedding_type": "q8_0"},
    ),
    "by name": (
        ("--tensor-type", "attn_v=q8_0", "--tensor-type", r"blk\.[01]\.ffn=iq4_nl"),
        {"tensor_type_overrides": [("attn_v", "q8_0"), (r"blk\.[01]\.ffn", "iq4_nl")]},
    ),
}


def test_the_presets_are_those_of_the_help(llama_bin: Path) -> None:
    _, lines = ask_tool((str(llama_bin / "llama-quantize"), "--help"))
    rows = (re.match(r"^ +(\d+)  or  (\w+) *: ", line) for line in lines)
    offered = {row[2]: int(row[1]) for row in rows if row}
    assert offered == {p.name: p.file_type_id for p in PRESETS.values()}


@pytest.mark.parametrize("model", MODELS)
def test_every_preset_of_every_model_to_the_byte(model: str, llama_bin: Path, tmp_path: Path) -> None:
    entry = catalog.find(model)
    assert entry is not None
    header = header_from_config(entry.config)
    source, imatrix = tmp_path / "weightless.gguf", tmp_path / "imatrix.dat"
    write_weightless(source, header.metadata, header.tensors)
    write_smallest_imatrix(imatrix)
    program = (str(llama_bin / "llama-quantize"),)

    def check(case: tuple[str, bool]) -> str | None:
        preset, guided = case
        code, lines = ask_tool(dry_run(program, source, preset, imatrix=imatrix if guided else None))
        told = parse_dry_run(lines)
        try:
            ours = apply_preset(header.tensors, header.metadata, preset, with_imatrix=guided)
        except PresetRefused:
            ours = None
        why = difference(ours, code, told)
        if why is None and ours is not None and not guided and ours.needs_imatrix != told.needs_imatrix:
            why = f"the tool {'needs' if told.needs_imatrix else 'does not need'} an imatrix"
        return f"{preset} imatrix={guided}: {why}" if why else None

    with ThreadPoolExecutor(2) as pool:
        wrong = [why for why in pool.map(check, [(p, guided) for p in PRESETS for guided in (False, True)]) if why]
    assert wrong == []


@pytest.mark.parametrize("option", sorted(OPTIONS))
@pytest.mark.parametrize("model", ["Llama-3.1-8B", "Gemma-3-1B", "Mixtral-8x7B", "Falcon-H1-7B"])
def test_options_over_the_recipes(model: str, option: str, llama_bin: Path, tmp_path: Path) -> None:
    entry = catalog.find(model)
    assert entry is not None
    header = header_from_config(entry.config)
    source = tmp_path / "weightless.gguf"
    write_weightless(source, header.metadata, header.tensors)
    flags, options = OPTIONS[option]
    for preset in ("Q4_K_M", "IQ2_M", "Q8_0", "F16"):
        code, lines = ask_tool((str(llama_bin / "llama-quantize"), "--dry-run", *flags, str(source), preset))
        ours = apply_preset(header.tensors, header.metadata, preset, **options)  # type: ignore[arg-type]
        assert difference(ours, code, parse_dry_run(lines)) is None, (preset, flags)


def test_the_file_has_as_many_bytes_as_we_say(llama_bin: Path, tmp_path: Path) -> None:
    """A real quantization of a small file of zeros."""
    from quantplan.model.gguf_header import read_gguf_header
    from quantplan.quant.file_size import source_kv_bytes

    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 512, "hidden_size": 256,
        "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    }  # fmt: skip
    header = header_from_config(config)
    metadata = {**header.metadata, "general.quantization_version": 2}
    source = tmp_path / "source.gguf"
    assert write_weightless(source, metadata, header.tensors, vocab="synthetic") == source.stat().st_size
    read = read_gguf_header(source)
    kv_bytes = source_kv_bytes(read.metadata, header.tensors, data_offset=read.data_offset)
    for preset in ("Q4_K_M", "Q8_0", "F16", "Q2_K"):
        out = tmp_path / f"{preset}.gguf"
        code, lines = ask_tool((str(llama_bin / "llama-quantize"), str(source), str(out), preset, "1"))
        assert code == 0, lines
        result = apply_preset(header.tensors, read.metadata, preset, kv_bytes=kv_bytes)
        assert result.file_bytes == out.stat().st_size
        assert result.tensor_bytes < result.file_bytes < result.tensor_bytes + MIB


# Small default configurations that the engine itself refuses, for a key that real files have.
REFUSED_BY_THE_ENGINE = {
    "apertus": "xielu values are in the weights",
    "deepseek_v2": "no experts a token by default",
    "deepseek_v32": "no scoring function by default",
    "exaone": "no RMS epsilon",
    "exaone_moe": "no scoring function by default",
    "hub_dsv2lite": "three layers are not the 27 of a Lite model",
    "qwen": "no RMS epsilon",
    "qwen2_5_vl": "no rope sections by default",
    "qwen2_vl": "no rope sections by default",
    "qwen3_vl": "no rope sections by default",
    "qwen3_vl_moe_hub": "no rope sections by default",
}


def test_architectures_beyond_the_catalog(llama_bin: Path, tmp_path: Path) -> None:
    goldens = json.loads((Path(__file__).parent.parent / "data" / "converter_goldens.json").read_text())
    program, source, imatrix = (str(llama_bin / "llama-quantize"),), tmp_path / "w.gguf", tmp_path / "imatrix.dat"
    write_smallest_imatrix(imatrix)
    wrong, refused = [], set()
    for name, row in [*goldens["configurations"].items(), *goldens["checkpoints"].items()]:
        rows = [SafetensorsTensor(name=n, shape=tuple(s), dtype=d) for n, s, d in row.get("tensors", ())]
        header = header_from_config(row["config"], tensors=rows or None)
        write_weightless(source, header.metadata, header.tensors)
        for preset, guided in (("Q2_K", False), ("IQ3_XXS", True), ("Q4_K_M", False), ("MXFP4_MOE", False)):
            code, lines = ask_tool(dry_run(program, source, preset, imatrix=imatrix if guided else None))
            if code:
                refused.add(name)
                continue
            ours = apply_preset(header.tensors, header.metadata, preset, with_imatrix=guided)
            why = difference(ours, code, parse_dry_run(lines))
            if why:
                wrong.append((name, preset, why))
    assert wrong == []
    assert refused == set(REFUSED_BY_THE_ENGINE)
