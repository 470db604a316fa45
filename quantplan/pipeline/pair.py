"""A reference and an artifact: whether the one can be measured against the other at all, before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from quantplan.errors import DamagedWeights, NotComparable
from quantplan.model.gguf_header import ArrayInfo, GgufHeader, read_gguf_header
from quantplan.pipeline import tensor_data

TEMPLATE = "tokenizer.chat_template"
# llama.h: enum llama_ftype; the label a file gives itself in general.file_type
FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS",
    20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M",
    28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE",
}  # fmt: skip
SIXTEEN_BIT = ("F32", "F16", "BF16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two GGUFs of one model, and what the artifact says it is."""

    reference: Path
    artifact: Path
    reference_header: GgufHeader
    artifact_header: GgufHeader
    n_vocab: int
    label: str | None

    @property
    def template_kept(self) -> bool:
        """Whether the artifact's chat template is the reference's, to the letter."""
        return self.reference_header.metadata.get(TEMPLATE) == self.artifact_header.metadata.get(TEMPLATE)

    @property
    def reference_type(self) -> str:
        """The type of most of the reference's bytes."""
        return _main_type(self.reference_header)


def check_pair(reference: Path, artifact: Path, *, label: str | None = None) -> Pair:
    """Both headers, compared. Raises NotComparable naming what differs, DamagedWeights for values that are not
    finite, BadModelFile for what is no GGUF. Nothing is measured yet."""
    ours, theirs = read_gguf_header(reference), read_gguf_header(artifact)

    def refuse(why: str) -> NotComparable:
        return NotComparable(artifact=artifact.name, reference=reference.name, why=why)

    for key, what in (("general.architecture", "architecture"), ("tokenizer.ggml.model", "tokenizer"),
                      ("tokenizer.ggml.pre", "pre-tokenizer")):  # fmt: skip
        a, b = ours.metadata.get(key), theirs.metadata.get(key)
        if a != b:
            raise refuse(f"its {what} is {b!r}, the reference's {a!r}")
    n_ours, n_theirs = n_vocabulary(ours), n_vocabulary(theirs)
    if n_ours != n_theirs or n_ours is None:
        raise refuse(f"its vocabulary has {n_theirs} tokens, the reference's {n_ours}")
    _same_tensors(ours, theirs, refuse)
    if _main_type(ours) not in SIXTEEN_BIT:
        raise refuse(f"the reference is itself quantized ({_main_type(ours)}); a 16-bit GGUF of the source is needed")
    for path, header in ((reference, ours), (artifact, theirs)):
        bad = [one for one in tensor_data.not_finite(path, header) if one.n_bad]
        if bad:
            raise DamagedWeights(path=path.name, tensors=tuple(one.tensor for one in bad))
    return Pair(
        reference=reference, artifact=artifact, reference_header=ours, artifact_header=theirs, n_vocab=n_ours,
        label=label or own_label(theirs),
    )  # fmt: skip


def n_vocabulary(header: GgufHeader) -> int | None:
    """Tokens of the vocabulary, from its list."""
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, ArrayInfo):
        return tokens.n
    return len(tokens) if isinstance(tokens, tuple) else None


def own_label(header: GgufHeader) -> str | None:
    """The preset that the file says it is."""
    kind = header.metadata.get("general.file_type")
    return FILE_TYPES.get(kind) if isinstance(kind, int) else None


def _same_tensors(ours: GgufHeader, theirs: GgufHeader, refuse: object) -> None:
    """The same tensors of the same shapes; an output head may be written or tied."""
    assert callable(refuse)
    a, b = ({t.name: t.shape for t in header.tensors} for header in (ours, theirs))
    for name in (*a, *b):
        if name == "output.weight" and (name in a) != (name in b):
            continue
        if a.get(name) != b.get(name):
            told = [f"{shape}" if shape else "missing" for shape in (b.get(name), a.get(name))]
            raise refuse(f"another source: tensor {name} is {told[0]} here and {told[1]} there")


def _main_type(header: GgufHeader) -> str:
    sizes: dict[str, int] = {}
    for tensor in header.tensors:
        sizes[tensor.type_name] = sizes.get(tensor.type_name, 0) + tensor.n_bytes
    return max(sizes, key=lambda name: sizes[name]) if sizes else "?"
