"""Layers read off GGUF metadata as the engine's loader reads them."""

from __future__ import annotations

import gguf
import pytest

from quantplan.errors import BadModelFile
from quantplan.model.facts import FactsOrigin, ModelFacts, TensorFacts
from quantplan.model.gguf_facts import facts_from_metadata
from quantplan.model.layer_rules import KNOWN_ARCHITECTURES

EMBEDDING = TensorFacts(name="token_embd.weight", shape=(1024, 5000), type_name="F16")


def read(arch: str, **keys: object) -> ModelFacts:
    base = {"block_count": 12, "context_length": 4096, "embedding_length": 1024, "attention.head_count": 16}
    metadata = {
        "general.architecture": arch,
        **{f"{arch}.{k.replace('__', '.')}": v for k, v in {**base, **keys}.items()},
    }
    return facts_from_metadata(metadata, [EMBEDDING], id="m", origin=FactsOrigin.GGUF_HEADER)


def test_the_keys_are_the_formats_own() -> None:
    keys = gguf.Keys
    for key, name in (
        (keys.LLM.BLOCK_COUNT, "block_count"), (keys.LLM.CONTEXT_LENGTH, "context_length"),
        (keys.Attention.HEAD_COUNT_KV, "attention.head_count_kv"), (keys.Attention.KEY_LENGTH, "attention.key_length"),
        (keys.Attention.SLIDING_WINDOW, "attention.sliding_window"), (keys.SSM.STATE_SIZE, "ssm.state_size"),
        (keys.Attention.KEY_LENGTH_MLA, "attention.key_length_mla"), (keys.WKV.HEAD_SIZE, "wkv.head_size"),
        (keys.Attention.SHARED_KV_LAYERS, "attention.shared_kv_layers"), (keys.LLM.EXPERT_COUNT, "expert_count"),
    ):  # fmt: skip
        assert key.format(arch="x") == f"x.{name}"


def test_what_the_gguf_package_knows_is_known() -> None:
    known = set(gguf.MODEL_ARCH_NAMES.values()) - {"clip", "mmproj"}
    assert known - KNOWN_ARCHITECTURES == set()


def test_heads_default_to_the_embedding_over_the_head_count() -> None:
    layer = read("llama", **{"attention.head_count_kv": 4}).layers[0]
    assert (layer.n_head, layer.n_head_kv, layer.n_embd_head_k, layer.n_embd_head_v) == (16, 4, 64, 64)


@pytest.mark.parametrize(
    ("arch", "keys", "sliding"),
    [
        ("gemma3", {"attention.sliding_window": 512}, [0, 1, 2, 3, 4, 6, 7, 8, 9, 10]),
        ("gemma3", {}, []),
        ("gemma2", {}, [0, 2, 4, 6, 8, 10]),
        ("cohere2", {"attention.sliding_window": 4096}, [0, 1, 2, 4, 5, 6, 8, 9, 10]),
        ("cohere2moe", {"attention.sliding_window": 4096}, [1, 2, 3, 5, 6, 7, 9, 10, 11]),
        ("phi3", {"attention.sliding_window": 2047}, []),
        ("exaone4", {"attention.sliding_window": 4096}, []),
        ("gemma4", {"attention.sliding_window": 512, "attention.sliding_window_pattern": [True] * 3 + [False] * 9},
         [0, 1, 2]),
    ],
)  # fmt: skip
def test_which_layers_slide(arch: str, keys: dict[str, object], sliding: list[int]) -> None:
    assert [il for il, layer in enumerate(read(arch, **keys).layers) if layer.is_swa] == sliding


def test_latent_attention_caches_no_v() -> None:
    sizes = {"key_length": 576, "value_length": 512, "key_length_mla": 192, "value_length_mla": 128, "head_count_kv": 1}
    layer = read("deepseek2", **{f"attention.{name}": size for name, size in sizes.items()}).layers[3]
    assert (layer.n_head_kv, layer.n_embd_head_k, layer.n_embd_head_v) == (1, 576, 0)


def test_recurrent_state_of_a_mamba_layer() -> None:
    facts = read(
        "mamba", **{"attention.head_count": 0, "ssm.conv_kernel": 4, "ssm.inner_size": 2048, "ssm.state_size": 16}
    )
    assert {(x.n_embd_r, x.n_embd_s, x.has_kv) for x in facts.layers} == {(3 * 2048, 2048 * 16, False)}


def test_layers_without_kv_heads_are_short_convolutions() -> None:
    facts = read("lfm2", **{"attention.head_count_kv": [0, 0, 8] * 4, "shortconv.l_cache": 3})
    assert [layer.has_kv for layer in facts.layers[:3]] == [False, False, True]
    assert (facts.layers[0].n_embd_r, facts.layers[2].n_embd_r) == (2048, 0)


def test_draft_layers_have_no_cache_in_the_main_context() -> None:
    facts = read("glm4moe", nextn_predict_layers=1)
    assert [layer.has_kv for layer in facts.layers] == [True] * 11 + [False]


def test_gemma4_shares_the_caches_of_earlier_layers() -> None:
    facts = read("gemma4", **{"attention.shared_kv_layers": 5, "attention.sliding_window": 512})
    assert sum(layer.has_kv for layer in facts.layers) == 7


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"block_count": "twelve"}, "llama.block_count is 'twelve'"),
        ({"block_count": -1}, "llama.block_count is -1"),
        ({"attention.head_count_kv": [8, 8]}, "has 2 values for 12 layers"),
    ],
)
def test_bad_metadata_is_named(keys: dict[str, object], named: str) -> None:
    with pytest.raises(BadModelFile, match=named.replace("[", r"\[")):
        read("llama", **keys)


def test_an_unknown_architecture_is_a_warning() -> None:
    assert "unknown" in read("futurama").warnings[0]
