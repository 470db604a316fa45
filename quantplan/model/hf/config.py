"""A config.json read as the converter reads it: text part on top, defaults filled in, one spelling of rope."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from quantplan.errors import BadConfig
from quantplan.places import data_file

# conversion/base.py (commit 0c1e570), ModelBase.load_hparams(): where other projects keep the text configuration
_TEXT_PARTS = ("text_config", "llm_config", "lm_config", "language_config", "lfm")
_TIED = "tie_word_embeddings"
_NO_ROW: Mapping[str, Any] = {"fields": {}}


@cache
def _defaults() -> Mapping[str, Any]:
    table = json.loads(data_file("hf_defaults.json").read_text(encoding="utf-8"))
    rows: Mapping[str, Any] = table["model_types"]
    return rows


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The configuration of the language model inside another, or None."""
    thinker = config.get("thinker_config")
    if isinstance(thinker, Mapping) and isinstance(thinker.get("text_config"), Mapping):
        return dict(thinker["text_config"])
    for name in _TEXT_PARTS:
        part = config.get(name)
        if isinstance(part, Mapping):
            return dict(part)
    return None


class HfConfig:
    """Fields by name, in the spelling of the text model's configuration class. Raises BadConfig where one lacks."""

    def __init__(self, config: Mapping[str, object]) -> None:
        top_row = _defaults().get(str(config.get("model_type", "")), _NO_ROW)
        text = text_part(config)
        if text is None and top_row.get("text"):
            # older files of vision models keep the text model's fields at the top
            text = {**config, "model_type": top_row["text"]}
        self.top_type = str(config.get("model_type", ""))
        self.model_type = self.top_type
        row = top_row
        merged: dict[str, Any] = {**top_row["fields"], **_aliased(config, top_row)}
        if text is not None:
            self.model_type = str(text.get("model_type") or top_row.get("text") or self.top_type)
            row = _defaults().get(self.model_type, _NO_ROW)
            merged |= {**row["fields"], **_aliased(text, row)}
            # a vision model ties its own embeddings: what it says counts before what its text part says
            said = (config.get(_TIED), text.get(_TIED), top_row["fields"].get(_TIED), row["fields"].get(_TIED))
            merged[_TIED] = next((value for value in said if value is not None), None)
        self.known_type = row is not _NO_ROW
        self._row = row
        self.given = frozenset(text if text is not None else config)
        self._fields = {name: value for name, value in merged.items() if value is not None}
        self.top: Mapping[str, Any] = config
        self.warnings: list[str] = []  # what a family has to say beside the header
        self._compute()

    def _compute(self) -> None:
        """What the configuration class computes of other fields, where the file leaves it out."""
        computed = self._row.get("computed", ())
        if "num_key_value_heads" in computed and "num_attention_heads" in self._fields:
            self._fields.setdefault("num_key_value_heads", self._fields["num_attention_heads"])
        if "head_dim" in computed and {"hidden_size", "num_attention_heads"} <= self._fields.keys():
            self._fields.setdefault("head_dim", self.n("hidden_size") // max(1, self.n("num_attention_heads")))

    def __contains__(self, name: str) -> bool:
        return name in self._fields

    def get(self, name: str, default: Any = None) -> Any:
        return self._fields.get(name, default)

    def first(self, *names: str) -> Any:
        """The first of the names that is set (find_hparam), else None."""
        return next((self._fields[name] for name in names if name in self._fields), None)

    def n(self, *names: str, default: int | None = None) -> int:
        """A count of elements. Raises BadConfig where it is absent, no whole number, negative or absurd."""
        value = self.first(*names)
        if value is None:
            if default is None:
                raise BadConfig(key=" or ".join(names), why="is missing")
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value // 1:
            raise BadConfig(key=names[0], why=f"is no whole number: {str(value)[:60]!r}")
        if not 0 <= value < 1 << 40:
            raise BadConfig(key=names[0], why=f"is out of range: {value}")
        return int(value)

    def flag(self, name: str, *, default: bool = False) -> bool:
        return bool(self._fields.get(name, default))

    def items(self, name: str) -> list[Any] | None:
        """A list by layer, else None."""
        value = self._fields.get(name)
        return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else None

    def put(self, name: str, value: Any) -> None:
        """Sets what a family derives and others then read."""
        self._fields[name] = value

    def layer_types(self, *, pattern: str = "sliding_window_pattern", default_pattern: int = 0) -> list[str] | None:
        """`layer_types`, or what `sliding_window_pattern` says: every n-th layer attends to everything."""
        given = self.items("layer_types")
        if given is not None:
            return [str(kind) for kind in given]
        every = self.n(pattern, default=default_pattern)
        if not every:
            return None
        n_layer = self.n("num_hidden_layers")
        return ["full_attention" if (i + 1) % every == 0 else "sliding_attention" for i in range(n_layer)]

    def rope(self) -> dict[str, Any]:
        """`rope_parameters` as transformers 5 writes them, also of `rope_theta` and `rope_scaling`."""
        given = self._fields.get("rope_parameters") or self._fields.get("rope_scaling") or {}
        rope = dict(given) if isinstance(given, Mapping) else {}
        if "full_attention" in rope or "sliding_attention" in rope:
            return rope
        if "type" in rope:
            rope.setdefault("rope_type", rope["type"])
        theta = self.first("global_rope_theta", "rope_theta", "rotary_emb_base")
        local = self.first("local_rope_theta", "rope_local_theta", "swa_rope_theta", "rope_local_base_freq")
        if "rope_parameters" in self._row.get("computed", ()):
            default = self._row.get("default_theta")
            by_kind = default if isinstance(default, dict) else {"global": default}
            theta = by_kind.get("global") if theta is None else theta
            local = by_kind.get("local") if local is None else local
        if local is not None:
            rope["sliding_attention"] = {"rope_theta": local}
        for name, value in (
            ("rope_theta", theta),
            ("partial_rotary_factor", self.first("partial_rotary_factor", "rope_pct", "rope_percent")),
            ("original_max_position_embeddings", self.first("original_max_position_embeddings")),
        ):
            if value is not None:
                rope.setdefault(name, value)
        return rope


def _aliased(config: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """The given fields under the names that the configuration class stores them by; a null stays one."""
    names = row.get("aliases", {})
    return {**{names.get(key, key): value for key, value in config.items()}, **config}
