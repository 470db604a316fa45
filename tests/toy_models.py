"""Small models with random weights and the bundled tokenizer: mixtures of experts, eyes, odd widths, any size."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from quantplan.places import data_file

_TOKENIZER = ("tokenizer.model", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
N_VOCAB = 768


def write_model(
    folder: Path, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], *, seed: int = 1
) -> Path:
    """A folder in Hugging Face format: float16 weights, as safetensors knows no bfloat16 of numpy's."""
    folder.mkdir(parents=True)
    bundled = data_file("bundled", "quantplan-tiny")
    for name in _TOKENIZER:
        shutil.copy(bundled / name, folder)
    (folder / "config.json").write_text(json.dumps(config))
    random = np.random.default_rng(seed)
    tensors = {
        name: np.ones(shape, np.float16)
        if len(shape) == 1
        else (random.standard_normal(shape, np.float32) / 20).astype(np.float16)
        for name, shape in shapes.items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def llama_config(**changes: Any) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float16", "vocab_size": N_VOCAB,
        "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
        "hidden_act": "silu", "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2, **changes,
    }  # fmt: skip


def llama_shapes(config: Mapping[str, Any], *, prefix: str = "model.") -> dict[str, tuple[int, ...]]:
    n, ff = config["hidden_size"], config["intermediate_size"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    heads = config["num_attention_heads"] * config["head_dim"]
    shapes: dict[str, tuple[int, ...]] = {f"{prefix}embed_tokens.weight": (N_VOCAB, n), f"{prefix}norm.weight": (n,)}
    for i in range(config["num_hidden_layers"]):
        at = f"{prefix}layers.{i}"
        shapes |= {
            f"{at}.self_attn.q_proj.weight": (heads, n), f"{at}.self_attn.k_proj.weight": (kv, n),
            f"{at}.self_attn.v_proj.weight": (kv, n), f"{at}.self_attn.o_proj.weight": (n, heads),
            f"{at}.input_layernorm.weight": (n,), f"{at}.post_attention_layernorm.weight": (n,),
        }  # fmt: skip
        n_expert = config.get("num_local_experts", 0)
        for e in range(n_expert):
            shapes |= {
                f"{at}.block_sparse_moe.experts.{e}.w{w}.weight": (ff, n) if w != 2 else (n, ff) for w in (1, 2, 3)
            }
        if n_expert:
            shapes[f"{at}.block_sparse_moe.gate.weight"] = (n_expert, n)
        else:
            shapes |= {f"{at}.mlp.{name}_proj.weight": (ff, n) for name in ("gate", "up")}
            shapes[f"{at}.mlp.down_proj.weight"] = (n, ff)
    return shapes


def llama(folder: Path, **changes: Any) -> Path:
    """A dense Llama."""
    config = llama_config(**changes)
    return write_model(folder, config, {**llama_shapes(config), "lm_head.weight": (N_VOCAB, config["hidden_size"])})


def mixture(folder: Path, *, n_expert: int = 4) -> Path:
    """A Mixtral in small."""
    config = llama_config(
        architectures=["MixtralForCausalLM"], model_type="mixtral", num_local_experts=n_expert, num_experts_per_tok=1
    )
    return write_model(folder, config, {**llama_shapes(config), "lm_head.weight": (N_VOCAB, config["hidden_size"])})


def vision(folder: Path) -> Path:
    """An Idefics3 in small: a Llama that sees through a SigLIP of one layer."""
    text = llama_config()
    n, patch, side, scale = 64, 8, 32, 2
    config = {
        "architectures": ["Idefics3ForConditionalGeneration"], "model_type": "idefics3", "torch_dtype": "float16",
        "scale_factor": scale, "text_config": text, "vocab_size": N_VOCAB, "image_token_id": 5,
        "vision_config": {
            "model_type": "idefics3", "hidden_size": n, "intermediate_size": 128, "num_attention_heads": 2,
            "num_hidden_layers": 1, "image_size": side, "patch_size": patch, "layer_norm_eps": 1e-6,
        },
    }  # fmt: skip
    at = "model.vision_model.encoder.layers.0"
    shapes = {**llama_shapes(text, prefix="model.text_model."), "lm_head.weight": (N_VOCAB, text["hidden_size"])}
    shapes |= {
        "model.vision_model.embeddings.patch_embedding.weight": (n, 3, patch, patch),
        "model.vision_model.embeddings.patch_embedding.bias": (n,),
        "model.vision_model.embeddings.position_embedding.weight": ((side // patch) ** 2, n),
        "model.vision_model.post_layernorm.weight": (n,), "model.vision_model.post_layernorm.bias": (n,),
        "model.connector.modality_projection.proj.weight": (text["hidden_size"], n * scale**2),
        f"{at}.mlp.fc1.weight": (128, n), f"{at}.mlp.fc1.bias": (128,),
        f"{at}.mlp.fc2.weight": (n, 128), f"{at}.mlp.fc2.bias": (n,),
        **{f"{at}.layer_norm{i}.{what}": (n,) for i in (1, 2) for what in ("weight", "bias")},
    }  # fmt: skip
    for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
        shapes |= {f"{at}.self_attn.{part}.weight": (n, n), f"{at}.self_attn.{part}.bias": (n,)}
    write_model(folder, config, shapes)
    processor = {
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "size": {"longest_edge": side},
        "do_image_splitting": True,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder
