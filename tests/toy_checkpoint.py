"""A whole Llama checkpoint of two layers, without weights."""

from __future__ import annotations

import json

import numpy as np
from loopback_hub import Hole

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 96,
    "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
}  # fmt: skip


def checkpoint_files() -> dict[str, bytes | Hole]:
    """A whole Llama of two layers in two shards, without weights."""
    shapes = {"model.embed_tokens.weight": [96, 64], "lm_head.weight": [96, 64], "model.norm.weight": [64]}
    for i in range(2):
        layer = f"model.layers.{i}"
        shapes |= {
            f"{layer}.self_attn.q_proj.weight": [64, 64], f"{layer}.self_attn.k_proj.weight": [32, 64],
            f"{layer}.self_attn.v_proj.weight": [32, 64], f"{layer}.self_attn.o_proj.weight": [64, 64],
            f"{layer}.mlp.gate_proj.weight": [128, 64], f"{layer}.mlp.up_proj.weight": [128, 64],
            f"{layer}.mlp.down_proj.weight": [64, 128], f"{layer}.input_layernorm.weight": [64],
            f"{layer}.post_attention_layernorm.weight": [64],
        }  # fmt: skip
    names = sorted(shapes)
    files: dict[str, bytes | Hole] = {"config.json": json.dumps(CONFIG).encode()}
    weight_map = {}
    for no, part in enumerate((names[:9], names[9:]), start=1):
        header, at = {}, 0
        for name in part:
            n_bytes = 2 * int(np.prod(shapes[name]))
            header[name] = {"dtype": "BF16", "shape": shapes[name], "data_offsets": [at, at + n_bytes]}
            at += n_bytes
        raw = json.dumps(header).encode()
        file = f"model-0000{no}-of-00002.safetensors"
        files[file] = Hole(len(raw).to_bytes(8, "little") + raw, 8 + len(raw) + at)
        weight_map.update(dict.fromkeys(part, file))
    files["model.safetensors.index.json"] = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
    files["README.md"] = b"---\nlicense: apache-2.0\n---\n# toy\n"
    return files
