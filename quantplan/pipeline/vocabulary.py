"""The vocabulary alone, made by the pinned converter from configuration and tokenizer files: seconds, no weights.

It tells what nothing else can before the download: whether the tokenizer is recognized, whether the chat template
arrives in the GGUF, and how long the key-value section will be, to the byte.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from quantplan import errors
from quantplan.artifact.receipt import write_atomically
from quantplan.llama import commands
from quantplan.llama.process import Runner, run_tool
from quantplan.model.checkpoint import INDEX_FILE
from quantplan.model.facts import TensorFacts
from quantplan.model.gguf_header import ArrayInfo, read_gguf_header
from quantplan.model.safetensors_header import SafetensorsTensor
from quantplan.places import cache_folder
from quantplan.rehearsal.through_converter import write_safetensors_hole
from quantplan.units import TIB

TEMPLATE_KEY, SIZE_LABEL_KEY = "tokenizer.chat_template", "general.size_label"
_FIXED_BYTES = 4 + 4 + 8 + 8  # magic, version, n_tensors, n_kv
_NOT_KNOWN = re.compile(r"BPE pre-tokenizer was not recognized|get_vocab_base_pre")
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
_TIMEOUT_S = 300.0
MAX_HOLE_BYTES = 8 * TIB  # ext4 allows files of 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """What the converter wrote. `kv_bytes` lacks general.size_label where the name of the model tells no size."""

    tokenizer: str | None
    pre: str | None
    n_tokens: int | None
    has_chat_template: bool
    kv_bytes: int
    has_size_label: bool

    def kv_bytes_with(self, tensors: Sequence[TensorFacts]) -> int:
        """The key-value section of the converted model: the size label is derived from its tensors."""
        if self.has_size_label:
            return self.kv_bytes
        return self.kv_bytes + 8 + len(SIZE_LABEL_KEY) + 4 + 8 + len(size_label(tensors))


def size_label(tensors: Sequence[TensorFacts]) -> str:
    """general.size_label as the converter derives it: gguf-py, GGUFWriter.get_total_parameter_count (0c1e570)."""
    import gguf

    total = shared = expert = n_expert_sum = n_expert_tensors = 0
    for tensor in tensors:
        size, rank = tensor.n_elements, len(tensor.shape)
        total += size
        if "_exps." in tensor.name and rank >= 3:
            n_expert = tensor.shape[1 if ".bias" in tensor.name else 2]
            expert += size // n_expert
            n_expert_sum, n_expert_tensors = n_expert_sum + n_expert, n_expert_tensors + 1
        else:
            shared += size
    n_experts = n_expert_sum // n_expert_tensors if n_expert_tensors else 0
    return str(gguf.size_label(total, shared, expert, n_experts))


def read_vocabulary(
    files: Mapping[str, bytes], *, model: str, name: str, converter: Path,
    tensors: Sequence[SafetensorsTensor] | None = None, run: Runner = run_tool,
) -> Vocabulary:  # fmt: skip
    """The vocabulary that the converter makes of these files (names to contents). Kept by content and converter.

    Raises TokenizerRefused with the converter's own words.
    """
    key = _key(files, name=name, converter=converter)
    kept = cache_folder() / "vocabularies" / f"{key}.json"
    try:
        return Vocabulary(**json.loads(kept.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        pass
    made = _ask_converter(files, model=model, name=name, converter=converter, tensors=tensors, run=run)
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(kept, json.dumps(asdict(made)))
    return made


def _key(files: Mapping[str, bytes], *, name: str, converter: Path) -> str:
    digest = hashlib.sha256(f"1 {name} {converter.parent.parent.name}".encode())
    for file in sorted(files):
        digest.update(file.encode() + b"\0" + hashlib.sha256(files[file]).digest())
    return digest.hexdigest()[:40]


def _ask_converter(
    files: Mapping[str, bytes], *, model: str, name: str, converter: Path,
    tensors: Sequence[SafetensorsTensor] | None, run: Runner,
) -> Vocabulary:  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="quantplan-vocabulary-") as place:
        folder, out = Path(place) / name, Path(place) / "vocabulary.gguf"
        for file, content in files.items():
            if file != INDEX_FILE and not file.endswith(".bin.index.json"):
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                (folder / file).write_bytes(content)
        if (
            tensors and sum(tensor.n_bytes for tensor in tensors) < MAX_HOLE_BYTES
        ):  # some models read their shapes from the weights' headers
            write_safetensors_hole(folder / "model.safetensors", tensors)
        argv = commands.convert((sys.executable,), converter, folder, out)
        argv = (*argv, "--model-name", name, "--vocab-only")
        try:
            run(argv, step="read the vocabulary", timeout_s=_TIMEOUT_S, extra_env=_OFFLINE)
        except errors.ToolFailed as error:
            raise errors.TokenizerRefused(model=model, why=_why(error.last_lines)) from error
        return _read(out)


def _why(lines: Sequence[str]) -> str:
    if any(_NOT_KNOWN.search(line) for line in lines):
        return "its pre-tokenizer is unknown to this build of llama.cpp"
    last = [line.strip() for line in lines if line.strip() and not line.startswith((" ", "WARNING", "INFO"))]
    return last[-1][:300] if last else "no reason was given"


def _read(path: Path) -> Vocabulary:
    header = read_gguf_header(path)
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    pre, kind = header.metadata.get("tokenizer.ggml.pre"), header.metadata.get("tokenizer.ggml.model")
    return Vocabulary(
        tokenizer=str(kind) if kind is not None else None,
        pre=str(pre) if pre is not None else None,
        n_tokens=tokens.n if isinstance(tokens, ArrayInfo) else len(tokens) if isinstance(tokens, tuple) else None,
        has_chat_template=any(key.startswith(TEMPLATE_KEY) for key in header.metadata),
        kv_bytes=path.stat().st_size - _FIXED_BYTES,
        has_size_label=SIZE_LABEL_KEY in header.metadata,
    )
