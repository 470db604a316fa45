"""The parts that graphs are made of: norms, attention, feed-forward (src/llama-graph.cpp, llama.cpp 0c1e570)."""

from __future__ import annotations

from collections.abc import Mapping

from quantplan.memory.graph import F32, Graph, Tensor
from quantplan.memory.graph_params import MASK_F16, MASK_F32, AttnInput, GraphParams, Weight
from quantplan.model.facts import LayerFacts

__all__ = ["AttnInput", "Blocks", "GraphParams", "Weight"]


class Blocks:
    """Builds pieces of one graph. `weights` are by GGUF name; a missing one means the layer has none."""

    def __init__(
        self,
        weights: Mapping[str, Weight],
        params: GraphParams,
        meta: Mapping[str, object],
        cache_backends: Mapping[int, int],
    ) -> None:
        self.g = Graph()
        self.weights, self.p, self.meta, self.cache_backends = weights, params, meta, cache_backends
        self.arch = str(meta["general.architecture"])
        self.widest_v = 0  # elements of a transposed V cell: that of the widest layer
        self._made: dict[str, Tensor] = {}

    def number(self, key: str, default: float = 0) -> float:
        value = self.meta.get(f"{self.arch}.{key}", default)
        return float(value) if isinstance(value, (int, float)) else default

    def w(self, name: str) -> Tensor | None:
        """A weight, once a graph."""
        made = self._made.get(name)
        if made is None:
            weight = self.weights.get(name)
            if weight is None:
                return None
            made = self.g.held(weight.ne, weight.nbytes, buffer=weight.backend, weight=True, kind=weight.kind,
                               extra=weight.extra)  # fmt: skip
            self._made[name] = made
        return made

    def tied_head(self) -> Tensor:
        """The embedding once more as the output head: on a GPU it is a copy there (TENSOR_DUPLICATED)."""
        return self.need("output.weight") if "output.weight" in self.weights else self.need("token_embd.weight#head")

    def need(self, name: str) -> Tensor:
        tensor = self.w(name)
        if tensor is None:
            raise KeyError(name)
        return tensor

    def linear(self, name: str, x: Tensor) -> Tensor:
        """Weight and, where there is one, bias."""
        y = self.g.matmul(self.need(f"{name}.weight"), x)
        bias = self.w(f"{name}.bias")
        return y if bias is None else self.g.like("ADD", y, bias)

    def norm(self, name: str, x: Tensor, *, rms: bool = True) -> Tensor:
        """build_norm: the normalization, its weight and its bias; x itself passes when only those are missing."""
        y = self.g.like("RMS_NORM" if rms else "NORM", x)
        weight, bias = self.w(f"{name}.weight") or self.w(name), self.w(f"{name}.bias")
        if weight is not None:
            y = self.g.like("MUL", y, weight)
        return y if bias is None else self.g.like("ADD", y, bias)

    def scale(self, x: Tensor) -> Tensor:
        return self.g.like("SCALE", x)

    def unary(self, x: Tensor) -> Tensor:
        return self.g.like("UNARY", x)

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        return self.g.like("ADD", a, b)

    # Inputs ----------------------------------------------------------------------------------------------------

    def inp_embd(self, *, scaled: bool = False) -> Tensor:
        """build_inp_embd: both the token and the embedding path are kept in the graph."""
        g, p = self.g, self.p
        table = self.need("token_embd.weight")
        tokens, embd = g.input(p.n_tokens, kind="i32"), g.input(table.ne[0], p.n_tokens)
        x = g.make("GET_ROWS", (table.ne[0], p.n_tokens), table, tokens)
        g.expand(x)
        g.expand(embd)
        if scaled:
            x = self.scale(x)
        return g.expand(x)

    def attn_input(self, *, swa: bool, n_embd_v: int) -> AttnInput:
        g, p = self.g, self.p
        n_kv = p.n_kv_swa if swa else p.n_kv
        size = MASK_F16 if p.flash_attn else MASK_F32
        v_rows = p.n_tokens if p.flash_attn else p.n_tokens * n_embd_v
        return AttnInput(
            k_idxs=g.input(p.n_tokens, size=8, kind="i64"),
            v_idxs=g.input(v_rows, size=8, kind="i64"),
            mask=g.input(n_kv, p.n_tokens // p.n_stream, 1, p.n_stream, size=size),
            n_kv=n_kv,
            k_rot=None,
            v_rot=None,
        )

    # Attention -------------------------------------------------------------------------------------------------

    def qkv(self, prefix: str, x: Tensor, layer: LayerFacts, *, clamp: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """build_qkv: fused or separate projections, shaped by head."""
        g, t = self.g, self.p.n_tokens
        shapes = ((layer.n_embd_head_k, layer.n_head), (layer.n_embd_head_k, layer.n_head_kv),
                  (layer.n_embd_head_v, layer.n_head_kv))  # fmt: skip
        if f"{prefix}attn_qkv.weight" in self.weights:
            fused = self.linear(f"{prefix}attn_qkv", x)
            if clamp:
                fused = g.like("CLAMP", fused)
            q, k, v = (g.view(fused, *shape, t) for shape in shapes)
            return q, k, v
        parts = []
        for name in ("attn_q", "attn_k", "attn_v"):
            y = self.linear(f"{prefix}{name}", x)
            parts.append(g.like("CLAMP", y) if clamp else y)
        q, k, v = (g.view(y, *shape, t, op="RESHAPE") for y, shape in zip(parts, shapes, strict=True))
        return q, k, v

    def rope(self, x: Tensor, pos: Tensor, factors: Tensor | None = None) -> Tensor:
        return self.g.like("ROPE", x, pos, factors) if factors is not None else self.g.like("ROPE", x, pos)

    def _rotate(self, x: Tensor, rot: Tensor) -> Tensor:
        """llama_mul_mat_hadamard."""
        n = rot.ne[0]
        total = 1
        for dim in x.ne:
            total *= dim
        flat = (self.g.make("CONT", (n, total // n), x) if x.op in ("VIEW", "PERMUTE")
                else self.g.view(x, n, total // n, op="RESHAPE"))  # fmt: skip
        return self.g.view(self.g.matmul(rot, flat), *x.ne, op="RESHAPE")

    def cache(self, il: int, which: str, n_embd: int, n_cells: int, kind: str) -> Tensor:
        block, size = self.p.kv_elements[kind]
        ne = (n_embd, n_cells, self.p.n_stream)
        name = f"cache_{which}_l{il}"
        if name not in self._made:
            nbytes = n_embd * n_cells * self.p.n_stream // block * size
            self._made[name] = self.g.held(ne, nbytes, buffer=self.cache_backends[il], weight=False, kind=kind)
        return self._made[name]

    def held_cache(self, name: str, ne: tuple[int, ...], nbytes: int, backend: int) -> Tensor:
        """A cache by name, once a graph."""
        if name not in self._made:
            self._made[name] = self.g.held(ne, nbytes, buffer=backend, weight=False)
        return self._made[name]

    def attention(  # noqa: PLR0913 - as many as build_attn has
        self,
        il: int,
        inp: AttnInput,
        layer: LayerFacts,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        *,
        owner: int | None = None,
        order: str = "qvk",
        sinks: Tensor | None = None,
        softcap: bool = False,
        v_mla: Tensor | None = None,
    ) -> Tensor:
        """build_attn without the output projection. `owner` is the layer whose cache is used; `v` None: MLA."""
        g, p = self.g, self.p
        k_rot, v_rot = inp.k_rot, inp.v_rot
        if k_rot is not None:
            q = self._rotate(q, k_rot)
            k = self._rotate(k, k_rot) if k is not None else None
        if v_rot is not None and v is not None:
            v = self._rotate(v, v_rot)
        for which in order:
            part = {"q": q, "k": k, "v": v}[which]
            if part is not None:
                g.expand(part)
        at = il if owner is None else owner
        n_k, n_v = layer.n_embd_head_k * layer.n_head_kv, layer.n_embd_head_v * layer.n_head_kv
        cache_k = self.cache(at, "k", n_k, inp.n_kv, p.type_k)
        if k is not None:
            rows = g.view(k, n_k, p.n_tokens)
            g.expand(g.into("SET_ROWS", cache_k, rows, inp.k_idxs, self._merged(cache_k)))
        cache_v = (
            cache_k
            if v_mla is not None
            else self.cache(at, "v", n_v if p.flash_attn else max(n_v, self.widest_v), inp.n_kv, p.type_v)
        )
        if v is not None and v_mla is None:
            self._store_v(cache_v, v, n_v, inp)
        out = self._mha(il, inp, layer, q, cache_k, cache_v, sinks=sinks, softcap=softcap, v_mla=v_mla)
        if v_rot is not None:
            out = self._rotate(out, v_rot)
        return out

    def _merged(self, cache: Tensor) -> Tensor:
        if self.p.n_stream == 1:
            return cache
        return self.g.view(cache, cache.ne[0], cache.ne[1] * cache.ne[2], op="RESHAPE")

    def _store_v(self, cache_v: Tensor, v: Tensor, n_v: int, inp: AttnInput) -> None:
        g, p = self.g, self.p
        if p.flash_attn:
            rows = g.view(v, n_v, p.n_tokens)
            g.expand(g.into("SET_ROWS", cache_v, rows, inp.v_idxs, self._merged(cache_v)))
            return
        # the cache holds V transposed: every element is a row of its own
        strided = v.op == "VIEW" and v.nbytes != n_v * p.n_tokens * F32
        rows = g.make("CONT", (n_v, p.n_tokens), v) if strided else g.view(v, n_v, p.n_tokens, op="RESHAPE")
        if n_v < cache_v.ne[0]:
            rows = g.make("PAD", (cache_v.ne[0], p.n_tokens), rows)
        rows = g.view(rows, 1, rows.ne[0] * p.n_tokens, op="RESHAPE")
        target = g.view(cache_v, 1, cache_v.ne[0] * cache_v.ne[1] * cache_v.ne[2], op="RESHAPE")
        g.expand(g.into("SET_ROWS", cache_v, rows, inp.v_idxs, target))

    def _mha(
        self,
        il: int,
        inp: AttnInput,
        layer: LayerFacts,
        q: Tensor,
        cache_k: Tensor,
        cache_v: Tensor,
        *,
        sinks: Tensor | None,
        softcap: bool,
        v_mla: Tensor | None,
    ) -> Tensor:
        """build_attn_mha."""
        g, p = self.g, self.p
        t, s, heads = p.n_tokens // p.n_stream, p.n_stream, layer.n_head
        dk = layer.n_embd_head_k
        dv = layer.n_embd_head_v if v_mla is None else v_mla.ne[0]  # the latent's rank
        k = g.view(cache_k, dk, layer.n_head_kv, inp.n_kv, s)
        v = (g.view(k, dv, layer.n_head_kv, inp.n_kv, s) if v_mla is not None
             else g.view(cache_v, dv, layer.n_head_kv, inp.n_kv, s))  # fmt: skip
        q = g.view(g.view(q, dk, heads, t, s), dk, t, heads, s, op="PERMUTE")
        k = g.view(k, dk, inp.n_kv, layer.n_head_kv, s, op="PERMUTE")
        v = g.view(v, dv, inp.n_kv, layer.n_head_kv, s, op="PERMUTE")
        if p.flash_attn:
            srcs = (q, k, v, inp.mask) if sinks is None else (q, k, v, inp.mask, sinks)
            out = g.make("FLASH_ATTN_EXT", (dv, heads, t, s), *srcs)
            out.extra = self._flash_extra(out.nbytes, layer, inp, v_mla is not None)
            if v_mla is not None:
                out = g.matmul(v_mla, g.view(out, dv, t, heads, s, op="PERMUTE"))
                dv = out.ne[0]
                out = g.make("CONT", (dv, heads, t, s), g.view(out, dv, heads, t, s, op="PERMUTE"))
            return g.expand(g.view(out, dv * heads, t * s, op="RESHAPE"))
        kq = g.make("MUL_MAT", (inp.n_kv, t, heads, s), k, q)
        if softcap:
            kq = self.scale(self.unary(self.scale(kq)))
        kq = g.like("SOFT_MAX", kq, inp.mask) if sinks is None else g.like("SOFT_MAX", kq, inp.mask, sinks)
        if v_mla is not None:
            v = g.make("CONT", (inp.n_kv, dv, layer.n_head_kv, s),
                       g.view(v, inp.n_kv, dv, layer.n_head_kv, s, op="TRANSPOSE"), size=2)  # fmt: skip
        kqv = g.make("MUL_MAT", (dv, t, heads, s), v, kq)
        if v_mla is not None:
            kqv = g.matmul(v_mla, kqv)
            dv = kqv.ne[0]
        merged = g.view(kqv, dv, heads, t, s, op="PERMUTE")
        out = g.make("CONT", (dv * heads, t * s), merged)
        out.backend = p.pin_attention
        return g.expand(out)

    def _flash_extra(self, nbytes: int, layer: LayerFacts, inp: AttnInput, v_is_k: bool) -> int:
        """ggml-cuda/fattn.cu: the tensor-core kernels read f16; other types are converted into the same buffer."""
        p, end = self.p, nbytes
        cells = inp.n_kv * p.n_stream * layer.n_head_kv * 2
        if p.type_k != "F16":
            end = -(-end // 128) * 128 + cells * layer.n_embd_head_k
        if p.type_v != "F16" and not v_is_k:
            end = -(-end // 128) * 128 + cells * layer.n_embd_head_v
        return end - nbytes

    # Feed-forward ----------------------------------------------------------------------------------------------

    def ffn(self, prefix: str, x: Tensor, *, act: str, suffix: str = "") -> Tensor:
        """build_ffn: gated in parallel, gated by a fused matrix, or plain. `act`: silu, gelu, relu, relu_sqr."""
        g = self.g
        up = self.linear(f"{prefix}ffn_up{suffix}", x)
        if f"{prefix}ffn_gate{suffix}.weight" in self.weights:
            gate = self.linear(f"{prefix}ffn_gate{suffix}", x)
            y = g.like("GLU", gate, up)
        else:
            down = self.need(f"{prefix}ffn_down{suffix}.weight")
            if up.ne[0] == 2 * down.ne[0]:
                y = g.make("GLU", (down.ne[0], *up.ne[1:]), up)
            else:
                y = self.unary(up)
                if act == "relu_sqr":
                    y = g.like("SQR", y)
        return self.linear(f"{prefix}ffn_down{suffix}", y)
