"""Which GGUF of a repository or folder is meant: by quant, by file name, or the only one."""

from __future__ import annotations

import re
from collections.abc import Sequence

from quantplan.errors import ChooseFile, HubFileNotFound
from quantplan.model.gguf_split import shard_names

# Not models of their own: vision towers, importance matrices, drafts' vocabularies
_NOT_MODELS = re.compile(r"(?:^|[/._-])(mmproj|imatrix|ggml-vocab)(?=[/._-])", re.IGNORECASE)
_QUANT = re.compile(
    r"(?:^|[-._/])((?:UD-)?(?:I?Q\d(?:_[A-Z0-9]+)*|TQ\d_\d|MXFP4(?:_MOE)?|NVFP4|BF16|F16|F32))(?=[-._/]|$)",
    re.IGNORECASE,
)


def model_files(names: Sequence[str]) -> tuple[str, ...]:
    """The GGUF models among files: one name each, of split ones that of the first shard."""
    found: dict[str, None] = {}
    for name in names:
        if not name.lower().endswith(".gguf") or _NOT_MODELS.search(name):
            continue
        folder, slash, base = name.rpartition("/")
        shards = shard_names(base) or (base,)
        found[f"{folder}{slash}{shards[0]}"] = None
    return tuple(sorted(found))


def holds_only_gguf(names: Sequence[str]) -> bool:
    """Whether GGUF files are the only weights there. Such repositories often carry the source's config.json too."""
    return bool(model_files(names)) and not any(name.endswith(".safetensors") for name in names)


def quant_of(name: str) -> str | None:
    """The quant that a file name tells: `Q4_K_M` of `Qwen3-8B-Q4_K_M.gguf`. The last one where it tells several."""
    found = _QUANT.findall(re.sub(r"(?:-\d{5}-of-\d{5})?\.gguf$", "", name, flags=re.IGNORECASE))
    return str(found[-1]) if found else None


def choose_gguf(names: Sequence[str], *, model: str, quant: str | None = None) -> str:
    """The file meant by `quant`, or the only model there is.

    Raises ChooseFile where several are meant, HubFileNotFound where none is.
    """
    models = model_files(names)
    if quant is None:
        if len(models) == 1:
            return models[0]
        raise ChooseFile(model=model, asked=None, choices=_told(models))
    exact = [name for name in models if (quant_of(name) or "").lower() == quant.lower()]
    word = re.compile(rf"(?:^|[-./]){re.escape(quant)}(?=[-./])", re.IGNORECASE)
    matches = exact or [name for name in models if word.search(name)]
    if not matches:
        raise HubFileNotFound(repo=model, file=quant, choices=_told(models))
    if len(matches) > 1:
        raise ChooseFile(model=model, asked=quant, choices=matches)
    return matches[0]


def _told(models: Sequence[str]) -> tuple[str, ...]:
    """Quants where every file tells another one, else file names."""
    quants = [quant_of(name) for name in models]
    if all(quants) and len(set(quants)) == len(models):
        return tuple(str(quant) for quant in quants)
    return tuple(models)
