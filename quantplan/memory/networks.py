"""The network of one model as a graph: which parts, in which order.

Most decoders differ in a few choices that their tensors already tell (fused or separate projections, biases, norms
before or after, gates, experts); what tensors cannot tell is in the tables here, from src/models/*.cpp (0c1e570).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quantplan.memory.blocks import AttnInput, Blocks
from quantplan.memory.delta_net import ARCHITECTURES as DELTA_NETS
from quantplan.memory.delta_net import delta_net, gated_attention
from quantplan.memory.graph import Graph, Tensor
from quantplan.memory.latent import latent_attention
from quantplan.memory.mixture import moe_ffn
from quantplan.memory.recurrent import StateInput, mamba, mamba2, shortconv, state_input
from quantplan.model.facts import LayerFacts

# LLM_NORM instead of LLM_NORM_RMS.
_LAYER_NORM = frozenset({
    "command-r", "cohere2", "cohere2moe", "stablelm", "starcoder2", "starcoder", "nemotron", "gpt2", "gptneox", "phi2",
    "falcon", "mpt", "bloom", "codeshell", "jais", "jais2", "olmo", "orion", "dbrx", "refact-ln", "phimoe",
})  # fmt: skip
_SCALED_EMBEDDING = frozenset({"gemma", "gemma2", "gemma3", "gemma3n", "gemma4", "gemma-embedding", "minicpm",
                               "minicpm3", "afmoe", "grok"})  # fmt: skip
_SCALED_QUERY = frozenset({"gemma", "gemma2", "gemma3", "phi3", "phi2", "phimoe"})
_NO_ROPE = frozenset({"gpt2", "starcoder", "bloom", "mpt", "refact", "jais", "jamba", "nemotron_h", "command-r-old"})
_ROPE_IN_WINDOW_ONLY = frozenset({"cohere2", "exaone4", "afmoe"})  # when there is a sliding window
_NORM_AFTER_ROPE = frozenset({"hunyuan-dense", "hunyuan-moe", "hunyuan_vl"})
_UNGATED = {"nemotron": "relu_sqr", "nemotron_h": "relu_sqr", "arcee": "relu_sqr", "jais2": "relu_sqr",
            "apertus": "relu_sqr"}  # fmt: skip
_PARALLEL = frozenset({"command-r", "cohere2", "cohere2moe", "phi2", "falcon", "plamo", "gptj"})
# The rows that are output are picked after the last layer, not inside it.
_ROWS_BEFORE_NORM = frozenset({"gpt-oss", "gemma3n", "hrm_text", "hy_v4", "kimi-k3", "step35"})
_ROWS_AFTER_NORM = frozenset({"gemma4", "cohere2moe", "hy_v3", "qwen3next", "qwen35", "qwen35moe", "nemotron_h",
                              "nemotron_h_moe", "bailingmoe3"})  # fmt: skip
_OUTPUT_ROWS_LAST = _ROWS_BEFORE_NORM | _ROWS_AFTER_NORM
_LOGIT_SCALED = frozenset({"command-r", "cohere2", "cohere2moe", "granite", "granitemoe", "granitehybrid", "minicpm"})


# Their graphs have parts that are not built here (indexers, KDA, RWKV, altup, cross attention): what comes out is a
# lower bound, and is called one.
PARTLY_BUILT = frozenset({
    "qwen3vl", "qwen3vlmoe",  # the inputs of their deepstack layers are not counted: 12 to 32 MiB a micro-batch of 512

    "deepseek32", "glm-dsa", "hy_v4", "dots3note", "minimax-m3", "minimax-01", "kimi-linear", "kimi-k3", "bailingmoe3",
    "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7", "gemma3n", "t5", "t5encoder", "plamo2", "chameleon", "cogvlm", "hrm_text",
    "graniteswitch", "nanbeige", "eagle3", "grovemoe", "talkie", "qwen3tts", "plm", "wavtokenizer-dec",
    "arctic", "mimo2", "step35", "laguna", "muse-glimmer", "maple", "spark2_5", "openelm",
})  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """What the graph is made from: the layers to build (a few that stand for all of them), and whose they are."""

    layers: Sequence[LayerFacts]
    build: Sequence[int]  # layer indices, in order; the last one is the model's last
    n_swa: int
    n_expert_used: Sequence[int]


def build_graph(b: Blocks, net: Network) -> Graph:
    """The whole graph of one reservation."""
    _Builder(b, net).run()
    return b.g


class _Builder:
    def __init__(self, b: Blocks, net: Network) -> None:
        self.b, self.g, self.net = b, b.g, net
        self.rms = b.arch not in _LAYER_NORM
        self.pos: Tensor | None = None
        self.full: AttnInput | None = None
        self.swa: AttnInput | None = None
        self.state: StateInput | None = None
        self.out_ids = self.g.input(b.p.n_outputs, kind="i32")

    def run(self) -> None:
        b, g, p = self.b, self.g, self.b.p
        x = b.inp_embd(scaled=b.number("embedding_scale", 0) != 0)
        if b.arch in _SCALED_EMBEDDING:
            x = b.scale(x)
        if "token_embd_norm.weight" in b.weights and "output_norm.weight" in b.weights:
            x = b.norm("token_embd_norm", x, rms=self.rms)
        self._inputs()
        if "position_embd.weight" in b.weights and self.pos is not None:
            x = b.add(x, g.make("GET_ROWS", x.ne, b.need("position_embd.weight"), self.pos))
        for il in self.net.build:
            x = self._layer(il, x, last=il == self.net.build[-1])
        if b.arch in _ROWS_BEFORE_NORM:
            x.is_output = b.arch in ("gpt-oss", "step35")  # t_h_nextn
            x = g.make("GET_ROWS", (x.ne[0], p.n_outputs), x, self.out_ids)
        x = b.norm("output_norm" if "output_norm.weight" in b.weights else "token_embd_norm", x, rms=self.rms)
        x.is_output = True  # t_embd, t_h_nextn
        if b.arch in _ROWS_AFTER_NORM:
            x = g.make("GET_ROWS", (x.ne[0], p.n_outputs), x, self.out_ids)
            x.is_output = True
        head = "output" if "output.weight" in b.weights else "token_embd"
        x = g.matmul(b.need("output.weight") if head == "output" else b.tied_head(), x)
        bias = b.w("output.bias")
        if bias is not None:
            x = b.add(x, bias)
        if b.arch in _LOGIT_SCALED and b.number("logit_scale", 0):
            x = b.scale(x)
        if b.number("final_logit_softcapping", 0):
            x = b.scale(b.unary(b.scale(x)))
        x.is_output = True
        g.expand(x)

    def _inputs(self) -> None:
        b, g, p = self.b, self.g, self.b.p
        layers = self.net.layers
        n_pos = 4 if b.meta.get(f"{b.arch}.rope.dimension_sections") is not None else 1
        self.pos = g.input(p.n_tokens * n_pos, kind="i32")
        widest = b.widest_v = max((x.n_embd_head_v * x.n_head_kv for x in layers), default=0)
        if any(x.n_embd_r or x.n_embd_s for x in layers):
            self.state = state_input(b)
        self.full = self._rotated(b.attn_input(swa=False, n_embd_v=widest), swa=False)
        if self.net.n_swa:
            self.swa = self._rotated(b.attn_input(swa=True, n_embd_v=widest), swa=True)

    def _rotated(self, inp: AttnInput, *, swa: bool) -> AttnInput:
        """Quantized caches are rotated by a Hadamard matrix (src/llama-kv-cache.cpp, attn_rot_k and attn_rot_v)."""
        g, p = self.g, self.b.p
        own = [x for x in self.net.layers if x.has_kv and (x.is_swa == swa or not self.net.n_swa)]
        heads_k, heads_v = {x.n_embd_head_k for x in own}, {x.n_embd_head_v for x in own}
        first = self.net.layers[0]
        if p.rotates_k and len(heads_k) == 1 and first.n_embd_head_k % 64 == 0 and first.n_embd_head_v:
            n = 64
            while min(heads_k) % (n * 2) == 0:
                n *= 2
            inp.k_rot = g.input(n, n)
        if p.rotates_v and len(heads_v) == 1 and first.n_embd_head_v and first.n_embd_head_v % 64 == 0:
            inp.v_rot = g.input(64, 64)
        return inp

    def _layer(self, il: int, x: Tensor, *, last: bool) -> Tensor:
        b, g = self.b, self.g
        prefix, layer = f"blk.{il}.", self.net.layers[il]
        residual = x
        attn_norm = f"{prefix}attn_norm"
        cur = b.norm(attn_norm, x, rms=self.rms) if f"{attn_norm}.weight" in b.weights or b.arch == "olmo" else x
        normed = cur
        cur = self._mixer(il, prefix, layer, cur, x)
        parallel = b.arch in _PARALLEL or (f"{prefix}ffn_norm.weight" not in b.weights
                                           and b.arch in ("stablelm", "gptneox"))  # fmt: skip
        if b.arch == "falcon-h1":
            residual = g.like("ADD", cur, residual)
        if last and b.arch not in _OUTPUT_ROWS_LAST:
            cur = g.make("GET_ROWS", (cur.ne[0], b.p.n_outputs), cur, self.out_ids)
            residual = g.make("GET_ROWS", (residual.ne[0], b.p.n_outputs), residual, self.out_ids)
            if parallel:
                normed = g.make("GET_ROWS", (normed.ne[0], b.p.n_outputs), normed, self.out_ids)
        if b.arch in ("mamba", "mamba2"):
            return g.like("ADD", cur, residual)
        if parallel:
            return self._parallel(prefix, il, cur, residual, normed)
        if b.arch == "falcon-h1":
            return self._feed_forward(il, prefix, residual)
        if b.arch == "gptneox" and b.meta.get("gptneox.use_parallel_residual"):
            y = self._ffn(il, prefix, b.norm(f"{prefix}ffn_norm", residual, rms=False))
            return g.like("ADD", g.like("ADD", y, residual), cur)
        post = f"{prefix}post_attention_norm"
        if f"{post}.weight" in b.weights and not self._post_norm_is_ffn_norm(prefix):
            cur = b.norm(post, cur, rms=self.rms)
        if b.number("residual_scale", 0) or b.arch == "minicpm":
            cur = b.scale(cur)
        cur = g.like("ADD", residual, cur) if b.arch in ("lfm2", "lfm2moe") else g.like("ADD", cur, residual)
        return self._feed_forward(il, prefix, cur)

    def _post_norm_is_ffn_norm(self, prefix: str) -> bool:
        """gpt-oss, GLM-4.5, Seed-OSS, Qwen3-Next: the only other norm of the layer comes before the feed-forward."""
        weights = self.b.weights
        ffn_norm = f"{prefix}ffn_norm"
        return (
            ffn_norm not in weights and f"{ffn_norm}.weight" not in weights and f"{prefix}attn_norm.weight" in weights
        )

    def _parallel(self, prefix: str, il: int, cur: Tensor, residual: Tensor, normed: Tensor) -> Tensor:
        """Attention and feed-forward side by side on the same normed input."""
        b, g = self.b, self.g
        if b.arch in ("stablelm", "gptneox"):
            both = g.like("ADD", cur, residual)
            return g.like("ADD", self._ffn(il, prefix, normed), both)
        y = self._ffn(il, prefix, normed)
        if b.arch in ("command-r", "cohere2", "cohere2moe"):
            return g.like("ADD", g.like("ADD", y, residual), cur)
        return g.like("ADD", g.like("ADD", cur, y), residual)

    def _feed_forward(self, il: int, prefix: str, x: Tensor) -> Tensor:
        b, g = self.b, self.g
        norm = f"{prefix}ffn_norm"
        if f"{norm}.weight" not in b.weights and norm not in b.weights and self._post_norm_is_ffn_norm(prefix):
            norm = f"{prefix}post_attention_norm"
        has_norm = f"{norm}.weight" in b.weights or norm in b.weights or b.arch == "olmo"
        cur = b.norm(norm, x, rms=self.rms) if has_norm else x
        cur = self._ffn(il, prefix, cur)
        if f"{prefix}post_ffw_norm.weight" in b.weights:
            cur = b.norm(f"{prefix}post_ffw_norm", cur, rms=self.rms)
        if b.number("residual_scale", 0) or b.arch == "minicpm":
            cur = b.scale(cur)
        return g.like("ADD", x, cur) if b.arch in ("phi3", "lfm2", "lfm2moe") else g.like("ADD", cur, x)

    def _ffn(self, il: int, prefix: str, x: Tensor) -> Tensor:
        b, g = self.b, self.g
        if f"{prefix}ffn_gate_inp.weight" not in b.weights:
            return b.ffn(prefix, x, act=_UNGATED.get(b.arch, "gelu"))
        routed = moe_ffn(b, prefix, x, n_used=self.net.n_expert_used[il])
        if f"{prefix}ffn_up_shexp.weight" not in b.weights:
            return routed
        if b.arch in ("qwen2moe", "qwen3next", "qwen35moe"):
            return self._gated_shared(prefix, x, routed)
        shared = b.ffn(prefix, x, act="silu", suffix="_shexp")
        return g.like("ADD", routed, shared)

    def _gated_shared(self, prefix: str, x: Tensor, routed: Tensor) -> Tensor:
        b, g = self.b, self.g
        if b.arch == "qwen2moe":
            gate = b.unary(g.matmul(b.need(f"{prefix}ffn_gate_inp_shexp.weight"), x))
            shared = b.ffn(prefix, x, act="silu", suffix="_shexp")
        else:
            shared = b.ffn(prefix, x, act="silu", suffix="_shexp")
            gate = b.unary(g.matmul(b.need(f"{prefix}ffn_gate_inp_shexp.weight"), x))
        return g.like("ADD", routed, g.make("MUL", shared.ne, shared, gate))

    def _mixer(self, il: int, prefix: str, layer: LayerFacts, cur: Tensor, x: Tensor) -> Tensor:
        """Attention, a recurrent layer, or both."""
        b, g = self.b, self.g
        state = self.state
        if b.arch == "falcon-h1" and state is not None:
            attn = self._attention(il, prefix, layer, cur)
            return g.like("ADD", attn, mamba2(b, il, prefix, b.norm(f"{prefix}attn_norm", x), state))
        if b.arch in DELTA_NETS and self.full is not None and state is not None and self.pos is not None:
            if layer.n_embd_s:
                return delta_net(b, il, prefix, cur, state)
            return gated_attention(b, il, prefix, cur, layer, self.full, self.pos)
        if state is not None and (layer.n_embd_r or layer.n_embd_s):
            if b.arch in ("lfm2", "lfm2moe"):
                return shortconv(b, il, prefix, cur, state)
            return (mamba if b.arch in ("mamba", "jamba") else mamba2)(b, il, prefix, cur, state)
        if layer.n_head_kv == 0 and f"{prefix}attn_q.weight" not in b.weights:
            return cur
        if f"{prefix}attn_kv_a_mqa.weight" in b.weights:
            assert self.full is not None and self.pos is not None
            return latent_attention(b, il, prefix, cur, layer, self.full, self.pos)
        return self._attention(il, prefix, layer, cur)

    def _attention(self, il: int, prefix: str, layer: LayerFacts, cur: Tensor) -> Tensor:
        b = self.b
        assert self.full is not None and self.pos is not None
        inp = self.swa if layer.is_swa and self.swa is not None else self.full
        q, k, v = self._qkv(prefix, layer, cur)
        rope = b.arch not in _NO_ROPE and not (b.arch in _ROPE_IN_WINDOW_ONLY and self.swa and not layer.is_swa)
        rope = rope and not (b.arch == "smollm3" and (il + 1) % 4 == 0) and b.arch != "granitehybrid"
        q, k = (self._side(f"{prefix}attn_{which}_norm", part, rope=rope) for which, part in (("q", q), ("k", k)))
        if b.arch in _SCALED_QUERY:
            q = b.scale(q)
        sinks = b.w(f"{prefix}attn_sinks.weight")
        out = b.attention(
            il, inp, layer, q, k, v,
            order="qkv" if self.swa is not None else "qvk",
            sinks=sinks,
            softcap=b.number("attn_logit_softcapping", 0) != 0,
        )  # fmt: skip
        return b.linear(f"{prefix}attn_output", out)

    def _side(self, name: str, part: Tensor, *, rope: bool) -> Tensor:
        """Norm and rotation of queries or keys, in the architecture's order."""
        b = self.b
        assert self.pos is not None
        has_norm = f"{name}.weight" in b.weights and not self._flat_norm(name, part)
        late = b.arch in _NORM_AFTER_ROPE
        if has_norm and not late:
            part = b.norm(name, part, rms=self.rms)
        if rope:
            part = b.rope(part, self.pos, b.w("rope_freqs.weight") or b.w("rope_factors_long.weight"))
        return b.norm(name, part, rms=self.rms) if has_norm and late else part

    def _flat_norm(self, name: str, part: Tensor) -> bool:
        return self.b.weights[f"{name}.weight"].ne[0] == part.ne[0] * part.ne[1] and part.ne[1] > 1

    def _qkv(self, prefix: str, layer: LayerFacts, cur: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Projections; OLMo 2 and its kin norm the whole rows before they are cut into heads."""
        b, g, t = self.b, self.g, self.b.p.n_tokens
        name = f"{prefix}attn_q_norm.weight"
        width = layer.n_head * layer.n_embd_head_k
        flat = (
            name in b.weights and b.weights[name].ne[0] == width and len(b.weights[name].ne) == 1 and layer.n_head > 1
        )
        if not flat:
            return b.qkv(prefix, cur, layer, clamp=b.number("attention.clamp_kqv", 0) > 0)
        q, k, v = (b.linear(f"{prefix}attn_{which}", cur) for which in "qkv")
        q, k = b.norm(f"{prefix}attn_q_norm", q), b.norm(f"{prefix}attn_k_norm", k)
        shapes = ((layer.n_embd_head_k, layer.n_head), (layer.n_embd_head_k, layer.n_head_kv),
                  (layer.n_embd_head_v, layer.n_head_kv))  # fmt: skip
        q, k, v = (g.view(y, *shape, t, op="RESHAPE") for y, shape in zip((q, k, v), shapes, strict=True))
        return q, k, v
