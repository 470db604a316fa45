"""What the pinned converter makes of a configuration: its GGUF header, asked of its own classes.

Builds the transformers model on the meta device, writes its parameters as safetensors headers over a hole
(in the checkpoint's spelling: one tensor per expert), runs convert_hf_to_gguf's model class lazily, and stops
before any data is written. Needs the build extra and the pinned llama.cpp tree.

    python scripts/weightless_from_converter.py --tree LLAMA_CPP --config config.json --output out.gguf
    python scripts/weightless_from_converter.py --tree LLAMA_CPP --configs model_configs.json --output folder/
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import struct
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from hub_checkpoints import Shaped, as_on_the_hub

logging.disable(logging.WARNING)
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

_DTYPES = {
    "torch.bfloat16": ("BF16", 2),
    "torch.float32": ("F32", 4),
    "torch.float16": ("F16", 2),
    "torch.int64": ("I64", 8),
    "torch.int32": ("I32", 4),
    "torch.bool": ("BOOL", 1),
    "torch.uint8": ("U8", 1),
}


def checkpoint_tensors(config: Mapping[str, Any], *, auto: str = "AutoModelForCausalLM") -> list[Shaped]:
    """Name, shape and dtype of every parameter, spelled as a hub checkpoint spells them (dtype: bf16)."""
    import torch
    import transformers
    from transformers.core_model_loading import revert_weight_conversion

    kwargs = dict(config)
    kwargs.pop("quantization_config", None)
    model_config = transformers.AutoConfig.for_model(kwargs.pop("model_type"), **kwargs)
    with torch.device("meta"):
        model = None
        for kind in (auto, "AutoModelForImageTextToText", "AutoModelForSeq2SeqLM", "AutoModel"):
            try:
                model = getattr(transformers, kind).from_config(model_config, dtype=torch.bfloat16)
                break
            except ValueError as error:
                if "Unrecognized configuration class" not in str(error):
                    raise
        if model is None:
            raise ValueError(f"transformers has no model for {config['model_type']}")
    state = model.state_dict()
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    for name in tied if getattr(model_config, "tie_word_embeddings", False) else ():
        state.pop(name, None)
    reverted = revert_weight_conversion(model, state)
    return [(name, tuple(t.shape), _DTYPES[str(t.dtype)][0]) for name, t in reverted.items()]


def write_safetensors_header(path: Path, tensors: Iterable[Shaped]) -> None:
    """A safetensors file whose data is a hole."""
    sizes = dict(_DTYPES.values()) | {"F8_E4M3": 1, "F8_E8M0": 1, "F8_E5M2": 1, "I8": 1}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape, dtype in tensors:
        n_bytes = sizes[dtype]
        for dim in shape:
            n_bytes *= dim
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + n_bytes]}
        offset += n_bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)


def convert_header(folder: Path, output: Path, *, tree: Path, outtype: str = "bf16") -> None:
    """The converter's GGUF for the Hugging Face folder, with its data a hole and no vocabulary."""
    from quantplan.rehearsal.converter_process import convert_header as convert

    convert(folder, output, tree=tree, outtype=outtype)


def _decoded(value: Any) -> Any:
    """transformers 5 writes an infinity as {"__float__": "Infinity"}."""
    if isinstance(value, dict):
        return float(value["__float__"]) if set(value) == {"__float__"} else {k: _decoded(v) for k, v in value.items()}
    return [_decoded(v) for v in value] if isinstance(value, list) else value


def _write_tokenizer(folder: Path, n_vocab: int) -> None:
    """Gemma's model classes count the tokens to cut the embeddings to them."""
    vocab = {f"t{i}": i for i in range(n_vocab)}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}, "added_tokens": []}))


def weightless(config: Mapping[str, Any], output: Path, *, tree: Path, outtype: str = "bf16", n_mtp: int = 0) -> None:
    """From a configuration alone to the GGUF that its converted checkpoint would be.

    Where the checkpoint is not what transformers writes, its tensors are written beside it: OUTPUT.tensors.json.
    """
    with tempfile.TemporaryDirectory(dir=output.parent) as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(config))
        text = {**config, **config.get("text_config", {})}
        if str(config.get("model_type", "")).startswith("gemma"):
            _write_tokenizer(folder, text.get("vocab_size", 262208))
        written = checkpoint_tensors(_decoded(config))
        tensors = as_on_the_hub(written, config, n_mtp=n_mtp)
        if tensors != written:
            output.with_suffix(".tensors.json").write_text(json.dumps(tensors))
        write_safetensors_header(folder / "model.safetensors", tensors)
        convert_header(folder, output, tree=tree, outtype=outtype)


def small_config(model_type: str) -> dict[str, Any]:
    """The default configuration of a model type with few layers, as transformers writes it."""
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = CONFIG_MAPPING[model_type]
    name = next(
        mapping[model_type]
        for mapping in (
            modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
            modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
            modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
            modeling_auto.MODEL_MAPPING_NAMES,
        )
        if model_type in mapping
    )
    fields = {f.name for f in dataclasses.fields(kind)}
    few = {"num_hidden_layers": 6} if "num_hidden_layers" in fields else {}
    try:
        config = kind(**few)
    except Exception:
        config = kind()
    config.architectures = [name if isinstance(name, str) else name[0]]
    written: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return written


def _all(entries: list[dict[str, Any]], args: argparse.Namespace) -> int:
    """One GGUF and one configuration an entry; what fails is told and the others go on."""
    failed = 0
    for entry in entries:
        target = args.output / f"{entry['name']}.gguf"
        if (args.only and entry["name"] not in args.only) or target.exists():
            continue
        try:
            config = entry["config"]() if callable(entry["config"]) else entry["config"]
            target.with_suffix(".json").write_text(json.dumps(config))
            weightless(config, target, tree=args.tree, outtype=args.outtype, n_mtp=entry.get("n_mtp", 0))
            print("ok", entry["name"], flush=True)
        except Exception as error:  # a table of what works: one failure must not hide the others
            failed += 1
            target.unlink(missing_ok=True)
            print("FAILED", entry["name"], type(error).__name__, str(error)[:300], flush=True)
    return 1 if failed else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--tree", type=Path, default=os.environ.get("QUANTPLAN_LLAMA_TREE"), help="the pinned llama.cpp tree"
    )
    parser.add_argument("--config", type=Path, help="one config.json")
    parser.add_argument("--configs", type=Path, help="a list of {name, config} and, where it has such layers, n_mtp")
    parser.add_argument("--only", action="append", help="names to do, of --configs")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--outtype", default="bf16")
    parser.add_argument("--model-type", action="append", help="model types of transformers, in small")
    args = parser.parse_args()
    if args.model_type:
        args.output.mkdir(parents=True, exist_ok=True)
        sys.exit(_all([{"name": t, "config": lambda t=t: small_config(t)} for t in args.model_type], args))
    if args.config:
        weightless(json.loads(args.config.read_text()), args.output, tree=args.tree, outtype=args.outtype)
        return
    args.output.mkdir(parents=True, exist_ok=True)
    sys.exit(_all(json.loads(args.configs.read_text()), args))


if __name__ == "__main__":
    main()
