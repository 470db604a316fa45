"""Models that other programs on this machine hold already: Ollama, LM Studio and huggingface_hub's cache.

Only their files are looked at; none of the programs is asked or changed. Names are `ollama:llama3.2:3b`,
`lmstudio:publisher/repository[/file.gguf]` and `hf:org/name[/file.gguf]`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantplan.errors import BadModelFile, ChooseFile, UnknownModel
from quantplan.model.gguf_choice import choose_gguf, model_files, quant_of
from quantplan.model.gguf_split import shard_names

STORES = ("ollama", "lmstudio", "hf")
_REGISTRY = "registry.ollama.ai"
_MODEL, _PROJECTOR = "application/vnd.ollama.image.model", "application/vnd.ollama.image.projector"


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """One model of a store: its files in order (several where it is split). `sha256` is what the store says of it."""

    store: str
    name: str  # as it is asked for, without the store
    files: tuple[Path, ...]
    quant: str | None = None
    sha256: str | None = None
    repo: str | None = None
    revision: str | None = None

    @property
    def n_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files)


def held_name(model: str) -> tuple[str, str] | None:
    """(store, name) where MODEL is written as one of a store's."""
    store, colon, name = model.partition(":")
    return (store, name) if colon and store in STORES and name and not name.startswith("//") else None


def find_held(store: str, name: str) -> Held:
    """The model of that name. Raises UnknownModel with the store's names, ChooseFile where several are meant."""
    if store == "ollama":
        return _find_ollama(name)
    listed = tuple(held(store))
    wanted = name.lower()
    found = [one for one in listed if one.name.lower() == wanted or one.name.lower().startswith(f"{wanted}/")]
    repo, _, quant = wanted.partition(":")
    found = found or [
        one for one in listed if one.name.lower().startswith(f"{repo}/") and (one.quant or "").lower() == quant
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise ChooseFile(model=f"{store}:{name}", asked=None, choices=tuple(one.name for one in found))
    raise UnknownModel(model=f"{store}:{name}", near=tuple(f"{store}:{one.name}" for one in listed[:3]))


def held(store: str) -> Iterator[Held]:
    """Every model that a store holds on this machine."""
    makers = {"ollama": _all_ollama, "lmstudio": _all_lmstudio, "hf": _all_hf}
    yield from makers[store]()


def ollama_folder() -> Path:
    """Where Ollama keeps models: OLLAMA_MODELS, the user's folder, or that of its service on Linux."""
    own = os.environ.get("OLLAMA_MODELS")
    if own:
        return Path(own)
    user, service = Path.home() / ".ollama" / "models", Path("/usr/share/ollama/.ollama/models")
    return service if not user.is_dir() and service.is_dir() else user


def lmstudio_folder() -> Path:
    """LM Studio's models; older versions kept them under ~/.cache."""
    own = os.environ.get("LMSTUDIO_MODELS")
    new, old = Path.home() / ".lmstudio" / "models", Path.home() / ".cache" / "lm-studio" / "models"
    return Path(own) if own else old if old.is_dir() and not new.is_dir() else new


def hf_folder() -> Path:
    """huggingface_hub's cache, by its own variables and without importing it."""
    cache = os.environ.get("HF_HUB_CACHE")
    home = os.environ.get("HF_HOME")
    base = Path(home) if home else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    return Path(cache) if cache else base / "hub"


def _find_ollama(name: str) -> Held:
    """`llama3.2:3b`, `user/model:tag` or `hf.co/org/name:Q4_K_M`; the tag is `latest` where none is given."""
    base, _, tag = name.partition(":")
    parts = base.split("/")
    host = parts.pop(0) if len(parts) > 2 or ("." in parts[0] and len(parts) > 1) else _REGISTRY
    owner = parts if len(parts) > 1 else ["library", *parts]
    where = Path(host, *owner, tag or "latest")
    folder = ollama_folder()
    if ".." in where.parts:
        raise UnknownModel(model=f"ollama:{name}")
    manifest = folder / "manifests" / where
    if not manifest.is_file():
        near = tuple(f"ollama:{one.name}" for one in _all_ollama())[:3]
        raise UnknownModel(model=f"ollama:{name}", near=near)
    found = _of_manifest(manifest, folder, name=name if tag else f"{name}:latest")
    if found is None:
        raise BadModelFile(path=manifest, why="is no manifest of a GGUF model, or its file is not there")
    return found


def _all_ollama() -> Iterator[Held]:
    folder = ollama_folder()
    for manifest in sorted((folder / "manifests").glob("*/*/*/*")):
        host, owner, model, tag = manifest.relative_to(folder / "manifests").parts
        front = "" if host == _REGISTRY else f"{host}/"
        front += "" if owner == "library" and host == _REGISTRY else f"{owner}/"
        found = _of_manifest(manifest, folder, name=f"{front}{model}:{tag}")
        if found is not None:
            yield found


def _of_manifest(manifest: Path, folder: Path, *, name: str) -> Held | None:
    try:
        layers = json.loads(manifest.read_text(encoding="utf-8"))["layers"]
        digests = [str(layer["digest"]) for layer in layers if layer["mediaType"] == _MODEL]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not digests or not all(d.startswith("sha256:") and d[7:].isalnum() and len(d) == 71 for d in digests):
        return None
    files = tuple(folder / "blobs" / digest.replace(":", "-") for digest in digests)
    if not all(path.is_file() for path in files):
        return None
    tag = name.rpartition(":")[2]
    return Held(
        store="ollama", name=name, files=files, quant=quant_of(f"x-{tag}.gguf"),
        sha256=digests[0][7:] if len(digests) == 1 else None,
    )  # fmt: skip


def _all_lmstudio() -> Iterator[Held]:
    yield from _in_folders("lmstudio", sorted(lmstudio_folder().glob("*/*")), _repo_of)


def _repo_of(folder: Path) -> tuple[str, None]:
    return f"{folder.parent.name}/{folder.name}", None


def _all_hf() -> Iterator[Held]:
    folders = sorted(hf_folder().glob("models--*/snapshots/*"))

    def repo_of(folder: Path) -> tuple[str, str | None]:
        return folder.parent.parent.name.removeprefix("models--").replace("--", "/"), folder.name

    yield from _in_folders("hf", folders, repo_of)


def _in_folders(store: str, folders: Sequence[Path], repo_of: object) -> Iterator[Held]:
    assert callable(repo_of)
    for folder in folders:
        names = tuple(str(path.relative_to(folder)) for path in sorted(folder.rglob("*.gguf")) if path.exists())
        repo, revision = repo_of(folder)
        for name in model_files(names):
            parent, _, base = name.rpartition("/")
            files = tuple(folder / parent / shard for shard in shard_names(base))
            if all(path.exists() for path in files):
                yield Held(
                    store=store, name=f"{repo}/{name}", files=files, quant=quant_of(name), repo=repo, revision=revision
                )


def gguf_in(folder: Path, *, quant: str | None) -> tuple[Path, ...]:
    """The files of the one GGUF that is meant in a folder. Raises ChooseFile, HubFileNotFound."""
    names = [path.name for path in sorted(folder.iterdir()) if path.is_file()]
    chosen = choose_gguf(names, model=str(folder), quant=quant)
    return tuple(folder / shard for shard in shard_names(chosen))
