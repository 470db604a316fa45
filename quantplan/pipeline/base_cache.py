"""Log-probabilities of a reference that are kept: keyed by model, text, build and settings, since the file of the
tool holds none of that."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from quantplan.artifact.receipt import sha256_of, write_atomically
from quantplan.errors import NoDiskSpace
from quantplan.llama import commands
from quantplan.llama.types import Completed, Toolchain
from quantplan.pipeline import logits
from quantplan.pipeline.evaluate import Corpus, Scored
from quantplan.pipeline.logits import BadLogits
from quantplan.pipeline.texts import Slice


class BaseCache:
    """One folder for many references; without a folder nothing is kept."""

    def __init__(self, folder: Path | None, *, reference: Path, tools: Toolchain) -> None:
        self._folder, self._reference, self._tools = folder, reference, tools
        self._sha256: str | None = None
        self._asked: dict[Path, dict[str, object]] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def check_space(self, predicted_bytes: int) -> None:
        """Raises NoDiskSpace when all that may be kept does not fit beside what is there."""
        if self._folder is None:
            return
        made = sum(path.stat().st_size for path in self._folder.glob("*.logits"))
        free = shutil.disk_usage(self._folder).free
        if free + made < predicted_bytes:
            raise NoDiskSpace(path=self._folder, need_bytes=predicted_bytes, free_bytes=free)

    def path(self, part: Slice, settings: commands.EvalSettings) -> Path | None:
        """Where the scores of this slice belong, or None when nothing is kept."""
        if self._folder is None:
            return None
        key = self._key(part, settings)
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
        path = self._folder / f"{name}.logits"
        self._asked[path] = key
        return path

    def read(self, text: Corpus, path: Path, settings: commands.EvalSettings) -> Scored | None:
        """Kept scores, when their file is whole and its note says the same key; else None, and they are made again."""
        if self._folder is None or path not in self._asked:
            return None
        try:
            note = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            header = logits.read_header(path)
        except (OSError, ValueError, BadLogits):
            return None
        if note.get("key") != self._asked[path] or header.n_ctx != settings.n_ctx or note.get("n") != header.n_chunk:
            return None
        done = Completed(argv=("kept",), returncode=0, seconds=0.0, peak_rss_bytes=None, stdout=(), stderr=())
        return Scored(corpus=text, logits=path, completed=done, printed=None)

    def keep(self, path: Path, part: Slice, settings: commands.EvalSettings) -> None:
        """Notes what a fresh file holds."""
        if self._folder is None:
            return
        note = {"key": self._key(part, settings), "n": logits.read_header(path).n_chunk}
        write_atomically(path.with_suffix(".json"), json.dumps(note))

    def _key(self, part: Slice, settings: commands.EvalSettings) -> dict[str, object]:
        if self._sha256 is None:
            self._sha256 = sha256_of(self._reference)
        engine = self._tools.engine()
        return {
            "model": self._sha256, "text": part.sha256, "build": [engine.version, engine.commit, list(engine.options)],
            "n_ctx": settings.n_ctx, "n_batch": settings.n_batch, "n_ubatch": settings.n_ubatch,
            "n_chunks": part.n_chunks, "n_gpu_layers": settings.n_gpu_layers,
        }  # fmt: skip
