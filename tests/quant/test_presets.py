"""Recipes: the type of every tensor, and so the bytes."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from quantplan.errors import BadValue
from quantplan.ggml_types import ggml_types
from quantplan.model import catalog
from quantplan.model.facts import TensorFacts
from quantplan.model.hf_config import ConvertedHeader, header_from_config
from quantplan.quant.mixtures import more_bits
from quantplan.quant.presets import PRESETS, PresetRefused, apply_preset
from quantplan.units import MIB


def header(name: str) -> ConvertedHeader:
    entry = catalog.find(name)
    assert entry is not None
    return header_from_config(entry.config)


def types_of(name: str, preset: str, **options: object) -> dict[str, str]:
    source = header(name)
    result = apply_preset(source.tensors, source.metadata, preset, **options)  # type: ignore[arg-type]
    return {tensor.name: tensor.type_name for tensor in result.tensors}


def test_every_row_of_the_printed_sizes(shared: Path) -> None:
    with (shared / "truth" / "quantized_size.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 234
    wrong = []
    for row in rows:
        source = header(row["model"])
        result = apply_preset(source.tensors, source.metadata, row["quant"])
        counts = {kind.upper(): int(n) for kind, n in (part.split(":") for part in row["tensor_types"].split())}
        ours = (f"{result.tensor_bytes / MIB:.2f}", f"{result.bits_per_weight:.2f}", dict(result.tensor_types))
        if ours != (f"{float(row['mib']):.2f}", f"{float(row['bits_per_weight']):.2f}", counts):
            wrong.append((row["model"], row["quant"], ours))
    assert wrong == []


def test_exact_bytes_of_one_recipe() -> None:
    source = header("Llama-3.1-8B")
    result = apply_preset(source.tensors, source.metadata, "q4_k_m")
    q4, q6 = ggml_types()["Q4_K"], ggml_types()["Q6_K"]
    assert (q4.type_size, q6.type_size) == (144, 210)
    six = 128256 * 4096 + 16 * (1024 * 4096 + 14336 * 4096)  # output, and attn_v and ffn_down of half the layers
    ones = 65 * 4096
    four = result.n_elements - six - ones
    assert result.tensor_bytes == four // 256 * 144 + six // 256 * 210 + ones * 4
    assert result.tensor_types == {"F32": 65, "Q4_K": 193, "Q6_K": 33}


@pytest.mark.parametrize(
    ("layer", "more"), [(0, True), (3, True), (4, False), (5, False), (6, True), (26, False), (28, True)]
)
def test_which_layers_get_more_bits(layer: int, more: bool) -> None:
    assert more_bits(layer, 32) is more


def test_rows_that_do_not_fill_the_blocks_fall_back_and_are_named() -> None:
    source = header("Gemma-3-1B")  # rows of 1152
    result = apply_preset(source.tensors, source.metadata, "Q4_K_M")
    assert result.tensor_types["Q5_0"] == 117
    assert "blk.0.ffn_up.weight" in result.fallbacks
    assert len(result.fallbacks) == 117 + 13  # Q4_K to Q5_0 and Q6_K to Q8_0; the embeddings choose Q8_0 themselves


def test_a_shape_without_any_type_is_refused() -> None:
    source = header("gpt-oss-20b")  # rows of 2880 fill no blocks of 128
    with pytest.raises(PresetRefused, match=r"Q1_0.*2880"):
        apply_preset(source.tensors, source.metadata, "Q1_0")


def test_an_imatrix_is_needed_or_changes_the_recipe() -> None:
    source = header("Qwen3-8B")
    needing = {name for name in PRESETS if apply_preset(source.tensors, source.metadata, name).needs_imatrix}
    assert needing == {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "Q2_K_S"}
    changed = {
        name
        for name in PRESETS
        if apply_preset(source.tensors, source.metadata, name).tensors
        != apply_preset(source.tensors, source.metadata, name, with_imatrix=True).tensors
    }
    assert changed == {"Q4_0", "Q5_0", "IQ4_NL", "IQ4_XS", "IQ3_XXS"}


def test_tied_embeddings_take_the_outputs_type() -> None:
    assert types_of("Llama-3.2-1B", "Q4_K_M")["token_embd.weight"] == "Q6_K"
    assert types_of("Llama-3.1-8B", "Q4_K_M")["token_embd.weight"] == "Q4_K"


def test_overrides_by_name_and_for_the_ends() -> None:
    asked = types_of(
        "Llama-3.1-8B", "Q4_K_M", tensor_type_overrides=[("attn_V", "q8_0"), (r"blk\.3\.ffn", "Q3_K")],
        output_tensor_type="f16", token_embedding_type="q8_0",
    )  # fmt: skip
    assert asked["blk.7.attn_v.weight"] == "Q8_0"
    assert asked["blk.3.ffn_down.weight"] == "Q3_K"
    assert asked["blk.3.attn_q.weight"] == "Q4_K"
    assert (asked["output.weight"], asked["token_embd.weight"]) == ("F16", "Q8_0")
    assert types_of("Llama-3.1-8B", "Q4_K_M", leave_output_tensor=True)["output.weight"] == "BF16"


def test_pure_leaves_one_type() -> None:
    assert set(types_of("Llama-3.1-8B", "Q4_K_M", pure=True).values()) == {"F32", "Q4_K"}


def test_unknown_names_are_refused() -> None:
    with pytest.raises(BadValue):
        types_of("Llama-3.1-8B", "Q9_K")
    with pytest.raises(BadValue):
        types_of("Llama-3.1-8B", "Q4_K_M", output_tensor_type="q9_k")


def test_what_is_already_quantized_is_named() -> None:
    tensors = (TensorFacts(name="blk.0.ffn_up_exps.weight", shape=(256, 64, 4), type_name="MXFP4"),)
    metadata = {"general.architecture": "gpt-oss", "gpt-oss.block_count": 1}
    assert apply_preset(tensors, metadata, "Q4_K_M").requantized == ("blk.0.ffn_up_exps.weight",)
    assert apply_preset(tensors, metadata, "MXFP4_MOE").requantized == ()


def test_an_alias_is_the_same_recipe() -> None:
    assert types_of("Qwen3-8B", "Q4_K") == types_of("Qwen3-8B", "Q4_K_M")
    assert PRESETS["Q4_K"].file_type_id == 15
