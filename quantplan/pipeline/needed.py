"""Which files of a repository a conversion reads, and what of them may not be taken without being asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quantplan import errors
from quantplan.model.checkpoint import INDEX_FILE, CheckpointFiles, read_json, weight_files
from quantplan.units import MIB

# conversion/ and gguf-py of llama.cpp at commit 0c1e570: the names that they open
TOKENIZER_FILES = (
    "tokenizer.model", "tokenizer.json", "vocab.json", "tekken.json", "spiece.model", "tokenizer.model.v3",
    "sentencepiece.bpe.model", "rwkv_vocab_v20230424.txt", "vocab.txt",
)  # fmt: skip
_READ = (
    "config.json", "generation_config.json", *TOKENIZER_FILES, "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "merges.txt", "chat_template.jinja", "chat_template.json", "params.json",
    "hf_quant_config.json", "preprocessor_config.json", "processor_config.json", "modules.json", "README.md",
)  # fmt: skip
_READ_PATTERNS = (re.compile(r"additional_chat_templates/[\w.\-]+\.jinja"), re.compile(r"[\w.\-]+\.tiktoken"))
_PICKLED = re.compile(r"pytorch_model(?:-\d+-of-\d+)?\.bin")  # what the converter would read with torch.load
PICKLE_INDEX = "pytorch_model.bin.index.json"
_MAX_CONFIG_BYTES = 32 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Needed:
    """Names by what they are for. `code` is Python that tokenizers or configurations would run."""

    small: tuple[str, ...]
    weights: tuple[str, ...]
    code: tuple[str, ...] = ()
    weights_are_pickled: bool = False

    @property
    def without_weights(self) -> tuple[str, ...]:
        return (*self.small, *self.code)

    @property
    def all(self) -> tuple[str, ...]:
        return (*self.without_weights, *self.weights)


def needed_files(files: CheckpointFiles, *, allow_code: bool = False, allow_pickle: bool = False) -> Needed:
    """What the converter needs of a checkpoint, nothing else.

    Raises RemoteCode and PickleWeights for what was not allowed, BadModelFile for what lacks.
    """
    names = files.names()
    code = _code(files, names)
    if code.python and not allow_code:
        raise errors.RemoteCode(model=files.name, named_in=code.named_in, files=code.python)
    if not any(name in names for name in TOKENIZER_FILES) and not any(name.endswith(".tiktoken") for name in names):
        raise errors.BadModelFile(path=files.name, why=f"has no tokenizer ({', '.join(TOKENIZER_FILES[:2])}, …)")
    weights = tuple(weight_files(files, names))
    pickled = () if weights else tuple(sorted(name for name in names if _PICKLED.fullmatch(name)))
    if pickled and not allow_pickle:
        raise errors.PickleWeights(model=files.name, files=pickled)
    if pickled and PICKLE_INDEX in names:
        _check_pickle_index(files, pickled)
    if not weights and not pickled:
        raise errors.BadModelFile(path=files.name, why=_no_weights(names))
    index = PICKLE_INDEX if pickled else INDEX_FILE
    small = [name for name in (*_READ, index) if name in names]
    small += [name for name in names if any(pattern.fullmatch(name) for pattern in _READ_PATTERNS)]
    return Needed(
        small=tuple(small), weights=weights or pickled,
        code=tuple(name for name in code.python if name in names) if allow_code else (),
        weights_are_pickled=bool(pickled),
    )  # fmt: skip


def _check_pickle_index(files: CheckpointFiles, pickled: Sequence[str]) -> None:
    """The converter joins the index's names to the folder unchecked: they must be those of the weights."""
    named = read_json(files, PICKLE_INDEX, max_bytes=_MAX_CONFIG_BYTES).get("weight_map")
    parts = {str(part) for part in named.values()} if isinstance(named, dict) else {""}
    for part in sorted(parts - set(pickled)):
        why = f"{part[:80]!r} is not a weight file of this model"
        raise errors.BadModelFile(path=f"{files.name}/{PICKLE_INDEX}", why=why)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Code:
    named_in: tuple[str, ...]
    python: tuple[str, ...]


def _code(files: CheckpointFiles, names: Sequence[str]) -> _Code:
    """Python in the repository, and the configurations that name some in auto_map."""
    named_in = []
    asked: set[str] = set()
    for name in ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json"):
        if name not in names:
            continue
        try:
            told = read_json(files, name, max_bytes=_MAX_CONFIG_BYTES).get("auto_map")
        except errors.BadModelFile:
            continue  # said where it is needed
        if told:
            named_in.append(name)
            asked.update(_classes(told))
    python = [name for name in names if name.endswith(".py")]
    python += sorted(asked - {name.removesuffix(".py") for name in python}) if not python else []
    return _Code(named_in=tuple(named_in), python=tuple(python))


def _classes(auto_map: object) -> list[str]:
    """The modules of auto_map: "tokenization_x.XTokenizer", or with the repository before: "org/x--tok.XTok"."""
    values = auto_map.values() if isinstance(auto_map, Mapping) else [auto_map]
    flat = [item for value in values for item in (value if isinstance(value, list) else [value])]
    return [f"{item.rpartition('.')[0]}.py" for item in flat if isinstance(item, str) and "." in item] or ["auto_map"]


def _no_weights(names: Sequence[str]) -> str:
    others = sorted(n for n in names if n.endswith((".gguf", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")))
    has = f" (it has {', '.join(others[:3])})" if others else ""
    return f"has no *.safetensors weights{has}"
