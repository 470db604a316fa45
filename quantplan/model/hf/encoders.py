"""Encoders that embed text: BERT (conversion/bert.py, commit 0c1e570)."""

from __future__ import annotations

from quantplan.model.hf.config import HfConfig
from quantplan.model.hf.families import Family
from quantplan.model.hf.layout import Block, Layout
from quantplan.model.hf.metadata import Metadata


def bert_tensors(c: HfConfig, t: Layout) -> None:
    """Norms after each half of a layer; the pooler and the language-model head are left out."""
    n_vocab, n_types = c.n("vocab_size"), c.n("type_vocab_size", default=2)
    t.put("token_embd.weight", (t.n_embd, n_vocab), "embeddings.word_embeddings.weight")
    t.put("position_embd.weight", (t.n_embd, c.n("max_position_embeddings")), "embeddings.position_embeddings.weight")
    t.put("token_types.weight", (t.n_embd, n_types), "embeddings.token_type_embeddings.weight")
    t.norm("token_embd_norm", "embeddings.LayerNorm", bias=True)
    for i in range(t.n_block):
        _bert_layer(t.block(i, "encoder.layer"), c)


def _bert_layer(b: Block, c: HfConfig) -> None:
    n, n_ff = b.n_embd, c.n("intermediate_size")
    for part, hf in (("q", "query"), ("k", "key"), ("v", "value")):
        b.linear(f"attn_{part}", f"attention.self.{hf}", n, n, bias=True)
    b.linear("attn_output", "attention.output.dense", n, n, bias=True)
    b.norm("attn_output_norm", "attention.output.LayerNorm", bias=True)
    b.mlp(n_ff, up="intermediate.dense", down="output.dense", bias=True)
    b.norm("layer_output_norm", "output.LayerNorm", bias=True)


def bert_metadata(_: HfConfig, md: Metadata) -> None:
    md.put("attention.causal", False)


FAMILIES = dict.fromkeys(
    ("BertModel", "BertForMaskedLM", "CamembertModel"), Family("bert", bert_tensors, bert_metadata)
)
