"""The published rows that the quality prior is fitted to: which count, as what recipe, on what text.

Rules, written down before the fit and the same for every row:
- a recipe is a preset of llama-quantize with or without an importance matrix, or a whole model at one ggml type
  ("pure"); other programs' recipes (ik_llama.cpp's own types, dynamic mixes, GPTQ) don't count;
- bartowski, unsloth (its plain presets) and gabriellarson quantize with an importance matrix; mradermacher's static
  repositories, prithivMLmods and lmstudio-community without;
- no row of a model whose reference has a perplexity above 100 on that text: the text is not the model's;
- no divergence over the top 40 tokens only; none measured against a quantized reference and below 4 times what that
  reference itself is off;
- perplexity (its log ratio) only where there is no divergence, at presets of 4 bits and less, and above its noise.
"""

from __future__ import annotations

import csv
import math
import re
from dataclasses import dataclass
from pathlib import Path

from quantplan.quant.preset_table import ALIASES, PRESETS

WITH_IMATRIX = {"bartowski", "unsloth", "gabriellarson"}
WITHOUT_IMATRIX = {"mradermacher", "prithivMLmods", "lmstudio-community", "lmstudio"}
WHOLE = {"Q8_0", "Q6_K"}  # these presets put every tensor at one type: pure and preset are one recipe
NO_PERPLEXITY = {"Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0"}
PPL_NOISE = 0.004  # standard error of a log perplexity ratio between two runs on wikitext-2
REFERENCE_KLD = {"iq4_nl": 0.03, "q4_0": 0.03, "iq6_k": 0.004, "q8_0": 0.002}
MAX_REFERENCE_PPL = 100

# name: (parameters, active parameters) where the name does not say it; facts/models_published.csv
SIZES = {
    "DeepSeek-V3.1-Terminus": (671e9, 37e9), "DeepSeek-V3.1": (671e9, 37e9), "DeepSeek-R1-0528": (671e9, 37e9),
    "GLM-4.5": (358e9, 32e9), "GLM-4.6": (357e9, 32e9), "GLM-4.7": (358e9, 32e9), "GLM-4.5-Air": (110e9, 12e9),
    "GLM-4.7-Flash": (31e9, 3e9), "GLM-5": (753e9, 40e9), "GLM-5.1": (753e9, 40e9), "GLM-5.2": (753e9, 40e9),
    "Kimi-K2-Thinking": (1026e9, 32e9), "Kimi-K2.5": (1026e9, 32e9), "Kimi-K2-Instruct": (1026e9, 32e9),
}  # fmt: skip

# name, pattern in a model's name, architectures of llama.cpp that no other family here bears
FAMILIES = (
    ("Llama-3", r"\bllama[-_ ]?3", ()),
    ("Llama-2", r"\bllama[-_ ]?[12]\b", ()),
    ("Qwen3.5", r"\bqwen3\.[5-9]", ("qwen35", "qwen35moe")),
    ("Qwen3", r"\bqwen3(?!\.)", ("qwen3", "qwen3moe", "qwen3vl", "qwen3vlmoe")),
    ("GLM-4.7-Flash", r"\bglm-4\.7-flash", ()),
    ("GLM-4.5", r"\bglm-4\.[5-7](?!v)", ("glm4moe",)),
    ("GLM-5", r"\bglm-5", ("glm-dsa",)),
    ("Kimi-K2", r"\bkimi-k2", ()),
    ("DeepSeek-V3", r"\bdeepseek-(v3|r1-0528)", ()),
    ("Gemma-2", r"\bgemma-2-", ("gemma2",)),
    ("ERNIE-4.5", r"\bernie-4\.5", ("ernie4_5", "ernie4_5-moe")),
)


@dataclass(frozen=True)
class Row:
    """One published figure: log of a KLD, or of a log perplexity ratio with its noise (`text` is then "ppl")."""

    model: str
    family: str
    preset: str
    with_imatrix: bool
    pure: bool
    text: str
    y: float
    noise: float
    url: str

    @property
    def recipe(self) -> tuple[str, bool, bool]:
        return self.preset, self.with_imatrix, self.pure


def size_of(model: str) -> tuple[float, float] | None:
    """Parameters and active parameters, from the table or the name."""
    if model in SIZES:
        return SIZES[model]
    found = re.search(r"(\d+(?:\.\d+)?)B(?:-A(\d+(?:\.\d+)?)B)?", model)
    if not found:
        return None
    total = float(found[1]) * 1e9
    return total, float(found[2]) * 1e9 if found[2] else total


def read_rows(path: Path) -> tuple[list[Row], dict[str, int]]:
    """The rows that count, and how many were left out, by reason."""
    with path.open(encoding="utf-8") as file:
        told = list(csv.DictReader(file))
    rows: dict[tuple[object, ...], Row] = {}
    left_out: dict[str, int] = {}
    for one in told:
        found = _row(one)
        if isinstance(found, str):
            left_out[found] = left_out.get(found, 0) + 1
        else:
            rows.setdefault((found.model, found.recipe, found.text, found.y), found)
    left_out["the same figure twice"] = len(told) - sum(left_out.values()) - len(rows)
    return list(rows.values()), left_out


def _row(one: dict[str, str]) -> Row | str:
    recipe, size = _recipe(one), size_of(one["model"])
    if recipe is None:
        return "another program's recipe, or 16 bit and more"
    if size is None:
        return "a model whose name was not told"
    preset, with_imatrix, pure = recipe
    family = next((name for name, pattern, _ in FAMILIES if re.search(pattern, one["model"], re.I)), None)
    figure = _figure(one, preset, pure)
    if isinstance(figure, str):
        return figure
    if family is None:
        return "a model of no family here"
    text, y, noise = figure
    return Row(one["model"], family, preset, with_imatrix, pure, text, y, noise, one["source_url"])


def _recipe(one: dict[str, str]) -> tuple[str, bool, bool] | None:
    """(preset or type, with an importance matrix, pure) of a row's label, or None."""
    label = one["quant"]
    who, _, rest = label.partition(" ")
    if who == "pure":
        name = rest.upper()
        return None if name in ("BF16", "F16") else (name, False, name not in WHOLE)
    if who in WITH_IMATRIX | WITHOUT_IMATRIX:
        return _preset(rest, who in WITH_IMATRIX)
    for pattern in (r"(\S+) \(imatrix WT 10m\)", r"(\S+) naive", r"(\S+) \(ik main\)"):
        found = re.fullmatch(pattern, label)
        if found:
            return _preset(found[1], True)
    note = one["note"]
    with_imatrix = ("imatrix" in note and "no imatrix" not in note) or "FIT-GGUF" in one["source_url"]
    return _preset(label, with_imatrix or label.upper().startswith(("IQ1", "IQ2", "IQ3")))


def _preset(name: str, with_imatrix: bool) -> tuple[str, bool, bool] | None:
    found = ALIASES.get(name.upper(), name.upper())
    if found not in PRESETS or found in ("F32", "F16", "BF16"):
        return None
    return found, with_imatrix, False


def _figure(one: dict[str, str], preset: str, pure: bool) -> tuple[str, float, float] | str:
    note = one["note"]
    if "TOP-40" in note:
        return "divergence over the top 40 tokens"
    if one["model"].startswith("gemma-4"):
        return f"the reference's perplexity is above {MAX_REFERENCE_PPL} on that text"
    if one["kld_mean"]:
        kld = float(one["kld_mean"])
        base = re.search(r"base logits ([a-z0-9_]+)", note)
        if base and kld < 4 * REFERENCE_KLD.get(base[1], 0.0):
            return "too near to the error of its quantized reference"
        text = "calibration" if base else "five domains" if "FIT-GGUF" in one["source_url"] else "wikitext"
        return text, math.log(kld), 0.0
    ratio = _log_ratio(one, note)
    if ratio is None:
        return "no figure, or no reference to compare with"
    if pure or preset in NO_PERPLEXITY or ratio < PPL_NOISE:
        return "perplexity that says less than its noise"
    return "ppl", math.log(ratio), PPL_NOISE / ratio


def _log_ratio(one: dict[str, str], note: str) -> float | None:
    error = re.search(r"QError.*= ([\d.]+)%", note)
    if error:
        return math.log1p(float(error[1]) / 100)
    accuracy = re.search(r"'accuracy'.*= ([\d.]+)%", note)
    if accuracy:
        return -math.log(float(accuracy[1]) / 100)
    if not (one["ppl"] and one["ppl_delta"]):
        return None
    ppl, delta = float(one["ppl"]), float(one["ppl_delta"])
    return math.log(ppl / (ppl - delta)) if delta > 0 else None
