"""What the pinned converter makes of a Hugging Face folder: its GGUF header over a hole, asked of its own classes.

A program of its own (`python converter_process.py FOLDER OUTPUT --tree TREE`): it needs torch and transformers, and the
gguf that lies beside the converter instead of the installed one. Nothing of quantplan is imported here.
"""

from __future__ import annotations

import argparse
import importlib
import os
import struct
import sys
from pathlib import Path
from typing import Any


def convert_header(folder: Path, output: Path, *, tree: Path, outtype: str = "bf16") -> None:
    """The converter's GGUF for the Hugging Face folder, with its data a hole and no vocabulary."""
    sys.path.insert(0, str(tree / "gguf-py"))
    sys.path.insert(0, str(tree))
    gguf: Any = importlib.import_module("gguf")
    torch: Any = importlib.import_module("torch")
    conversion: Any = importlib.import_module("conversion")
    kinds = {
        "bf16": gguf.LlamaFileType.MOSTLY_BF16,
        "f16": gguf.LlamaFileType.MOSTLY_F16,
        "f32": gguf.LlamaFileType.ALL_F32,
        "auto": gguf.LlamaFileType.GUESSED,
        "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    }
    with torch.inference_mode():
        hparams = conversion.ModelBase.load_hparams(folder, False)
        architecture = conversion.get_model_architecture(hparams, conversion.ModelType.TEXT)
        model_class = conversion.get_model_class(architecture, mmproj=False)
        # a model that transformers makes has no MTP layers; the converter then wants to be told
        model_class.no_mtp = model_class.supports_mtp_export and not _has_mtp(folder)
        model = model_class(folder, kinds[outtype], output, eager=False)
        text = {**hparams, **hparams.get("text_config", {})}

        def set_vocab() -> None:
            model.gguf_writer.add_tokenizer_model("no_vocab")
            if gguf.Keys.LLM.VOCAB_SIZE.format(arch=model.gguf_writer.arch) not in model.gguf_writer.kv_data[0]:
                model.gguf_writer.add_vocab_size(text["vocab_size"])

        model = getattr(model, "impl", model)  # Mistral 3 wraps the class that does the work
        model.set_vocab = set_vocab
        model.prepare_tensors()
        model.prepare_metadata(vocab_only=False)
    _write_with_hole(model.gguf_writer, output)


def _has_mtp(folder: Path) -> bool:
    with (folder / "model.safetensors").open("rb") as file:
        header = file.read(struct.unpack("<Q", file.read(8))[0])
    return b'"mtp.' in header or b'"model.mtp.' in header


def _write_with_hole(writer: Any, output: Path) -> None:
    gguf: Any = importlib.import_module("gguf")
    writer.write_header_to_file(path=output)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for file in writer.fout:
        end = file.tell()
        file.close()
    pad = gguf.GGUFWriter.ggml_pad
    total = pad(end, writer.data_alignment)
    for info in writer.tensors[0].values():
        total += pad(info.nbytes, writer.data_alignment)
    os.truncate(output, total)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--tree", type=Path, required=True)
    args = parser.parse_args()
    convert_header(args.folder, args.output, tree=args.tree)


if __name__ == "__main__":
    main()
