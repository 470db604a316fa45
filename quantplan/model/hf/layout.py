"""The tensors of a converted model: which GGUF tensor is made of which tensors of the checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

from quantplan.model.hf.config import HfConfig

Shape = tuple[int, ...]
OUTTYPE = "outtype"


@dataclass(frozen=True, slots=True)
class Source:
    """Tensors of the checkpoint: `{x}` in the name counts the experts up to n."""

    name: str
    n: int = 1

    def names(self) -> list[str]:
        return [self.name.replace("{x}", str(x)) for x in range(self.n)] if "{x}" in self.name else [self.name]


@dataclass(frozen=True, slots=True)
class Row:
    """One GGUF tensor. `sources` are alternatives, each a group of tensors that it is made of.

    Not expected: the configuration does not say that it exists; it does where the checkpoint has it.
    Whole: it is its one source tensor and nothing else, so the checkpoint's shape is its shape.
    Kind: the type it gets of the checkpoint's usual form, whatever the outtype; None where the name and the outtype
    decide, OUTTYPE where the outtype alone does.
    """

    name: str
    shape: Shape
    sources: tuple[tuple[Source, ...], ...]
    expected: bool = True
    whole: bool = True
    kind: str | None = None


class Layout:
    """Collects the rows of one model. Shapes are in ggml order: the row length first."""

    def __init__(self, config: HfConfig, *, n_block: int) -> None:
        self.config, self.n_block = config, n_block
        self.n_embd = config.n("hidden_size", "n_embd", "d_model", "dim", default=0)
        self.rows: list[Row] = []

    def put(
        self,
        name: str,
        shape: Shape,
        *hf: str | Source,
        expected: bool = True,
        whole: bool = True,
        kind: str | None = None,
    ) -> None:
        """One tensor; each of `hf` is an alternative it may be made of."""
        sources = tuple((h if isinstance(h, Source) else Source(h),) for h in hf)
        self.rows.append(Row(name, shape, sources, expected, whole, kind))

    def join(self, name: str, shape: Shape, *hf: str, expected: bool = True) -> None:
        """One tensor made of all of `hf`."""
        self.rows.append(Row(name, shape, (tuple(Source(h) for h in hf),), expected, False))

    def linear(self, name: str, hf: str, n_in: int, n_out: int, *, bias: bool = False, expected: bool = True) -> None:
        """A weight and, where there is one, its bias."""
        self.put(f"{name}.weight", (n_in, n_out), f"{hf}.weight", expected=expected)
        self.put(f"{name}.bias", (n_out,), f"{hf}.bias", expected=bias)

    def norm(self, name: str, hf: str, n: int | None = None, *, bias: bool = False, expected: bool = True) -> None:
        n = self.n_embd if n is None else n
        self.put(f"{name}.weight", (n,), f"{hf}.weight", expected=expected)
        self.put(f"{name}.bias", (n,), f"{hf}.bias", expected=bias)

    def ends(
        self,
        *,
        embed: str = "model.embed_tokens",
        norm: str | None = "model.norm",
        head: str = "lm_head",
        tied: bool | None = None,
        norm_bias: bool = False,
        head_bias: bool = False,
    ) -> None:
        """Token embeddings, the last norm and the output: absent where it is tied to the embeddings."""
        n_vocab = self.config.n("vocab_size", "padded_vocab_size")
        tied = self.config.flag("tie_word_embeddings") if tied is None else tied
        self.put("token_embd.weight", (self.n_embd, n_vocab), f"{embed}.weight")
        if norm:
            self.norm("output_norm", norm, bias=norm_bias)
        self.put("output.weight", (self.n_embd, n_vocab), f"{head}.weight", expected=not tied)
        self.put("output.bias", (n_vocab,), f"{head}.bias", expected=head_bias)

    def block(self, i: int, prefix: str = "model.layers") -> Block:
        return Block(self, i, f"{prefix}.{i}.")


class Block:
    """One layer: names are relative to `blk.N.` and to the checkpoint's prefix."""

    def __init__(self, layout: Layout, i: int, prefix: str) -> None:
        self.layout, self.i, self.prefix, self.config = layout, i, prefix, layout.config
        self.n_embd = layout.n_embd

    def put(
        self,
        name: str,
        shape: Shape,
        *hf: str,
        expected: bool = True,
        whole: bool = True,
        kind: str | None = None,
    ) -> None:
        sources = (self.prefix + h for h in hf)
        self.layout.put(f"blk.{self.i}.{name}", shape, *sources, expected=expected, whole=whole, kind=kind)

    def join(self, name: str, shape: Shape, *hf: str, expected: bool = True) -> None:
        self.layout.join(f"blk.{self.i}.{name}", shape, *(self.prefix + h for h in hf), expected=expected)

    def linear(self, name: str, hf: str, n_in: int, n_out: int, *, bias: bool = False, expected: bool = True) -> None:
        self.layout.linear(f"blk.{self.i}.{name}", self.prefix + hf, n_in, n_out, bias=bias, expected=expected)

    def norm(self, name: str, hf: str, n: int | None = None, *, bias: bool = False, expected: bool = True) -> None:
        self.layout.norm(f"blk.{self.i}.{name}", self.prefix + hf, n, bias=bias, expected=expected)

    def attention(
        self,
        *,
        n_head: int,
        n_head_kv: int,
        head_dim: int,
        hf: str = "self_attn",
        bias: bool = False,
        out_bias: bool = False,
        out: str = "o_proj",
        v_head_dim: int | None = None,
    ) -> None:
        """q, k, v and the output projection, of four tensors."""
        v = head_dim if v_head_dim is None else v_head_dim
        self.linear("attn_q", f"{hf}.q_proj", self.n_embd, n_head * head_dim, bias=bias)
        self.linear("attn_k", f"{hf}.k_proj", self.n_embd, n_head_kv * head_dim, bias=bias)
        self.linear("attn_v", f"{hf}.v_proj", self.n_embd, n_head_kv * v, bias=bias)
        self.linear("attn_output", f"{hf}.{out}", n_head * v, self.n_embd, bias=out_bias)

    def qk_norm(
        self, n_q: int, n_k: int, *, hf: str = "self_attn", names: tuple[str, str] = ("q_norm", "k_norm")
    ) -> None:
        self.norm("attn_q_norm", f"{hf}.{names[0]}", n_q)
        self.norm("attn_k_norm", f"{hf}.{names[1]}", n_k)

    def swiglu(
        self,
        n_ff: int,
        *,
        hf: str = "mlp",
        suffix: str = "",
        names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
        bias: bool = False,
        expected: bool = True,
    ) -> None:
        """gate, up and down; suffix `_shexp` for shared experts."""
        gate, up, down = names
        self.linear(f"ffn_gate{suffix}", f"{hf}.{gate}", self.n_embd, n_ff, bias=bias, expected=expected)
        self.linear(f"ffn_up{suffix}", f"{hf}.{up}", self.n_embd, n_ff, bias=bias, expected=expected)
        self.linear(f"ffn_down{suffix}", f"{hf}.{down}", n_ff, self.n_embd, bias=bias, expected=expected)

    def mlp(self, n_ff: int, *, up: str, down: str, bias: bool = False) -> None:
        """up and down without a gate."""
        self.linear("ffn_up", up, self.n_embd, n_ff, bias=bias)
        self.linear("ffn_down", down, n_ff, self.n_embd, bias=bias)

    def experts(
        self,
        n_expert: int,
        n_ff: int,
        *,
        hf: str = "mlp.experts",
        names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
        n_in: int | None = None,
        suffix: str = "_exps",
    ) -> None:
        """Expert weights: one tensor an expert in the checkpoint, or fused as transformers 5 keeps them."""
        n_in = self.n_embd if n_in is None else n_in
        gate, up, down = names
        for part, name, shape, fused in (
            ("gate", gate, (n_in, n_ff, n_expert), "gate_up_proj"),
            ("up", up, (n_in, n_ff, n_expert), "gate_up_proj"),
            ("down", down, (n_ff, n_in, n_expert), "down_proj"),
        ):
            self.layout.put(
                f"blk.{self.i}.ffn_{part}{suffix}.weight",
                shape,
                Source(f"{self.prefix}{hf}.{{x}}.{name}.weight", n_expert),
                f"{self.prefix}{hf}.{fused}",
                f"{self.prefix}{hf}.{fused}.weight",
                f"{self.prefix}{hf}.{name}",
                f"{self.prefix}{hf}.{name}.weight",
                whole=False,
            )

    def router(self, n_expert: int, hf: str = "mlp.gate", *, bias: bool = False) -> None:
        self.linear("ffn_gate_inp", hf, self.n_embd, n_expert, bias=bias)
