"""Mixture-of-experts feed-forward: build_moe_ffn of src/llama-graph.cpp, and what CUDA fuses of it (0c1e570)."""

from __future__ import annotations

from quantplan.memory.blocks import Blocks
from quantplan.memory.graph import Tensor

SOFTMAX, SIGMOID, SOFTMAX_WEIGHT, SQRT_SOFTPLUS = 1, 2, 3, 4  # llama_expert_gating_func_type
_NOT_NORMALIZED = frozenset({"qwen2moe", "olmoe", "deepseek", "gpt-oss", "llama4", "grok", "hunyuan-moe-raw"})
_READS_NORM = frozenset({"deepseek2", "deepseek2-ocr", "glm4moe", "bailingmoe", "bailingmoe2", "dots1", "deepseek32",
                         "glm-dsa", "mistral4", "kimi-linear", "afmoe", "laguna", "exaone-moe"})  # fmt: skip
_SIGMOID_BY_DEFAULT = frozenset({"llama4", "glm4moe", "dots1", "minimax-m2", "lfm2moe", "bailingmoe2", "afmoe"})
# ggml-cuda/topk-moe.cu: expert counts that one fused kernel handles.
_MAX_FUSED_EXPERTS, _ODD_FUSED_EXPERTS = 512, (288, 576)
_MAX_FUSED_REDUCTION = 32  # ggml-cuda.cu: MOE_WEIGHTED_REDUCTION_MAX_EXPERTS


def moe_ffn(b: Blocks, prefix: str, x: Tensor, *, n_used: int) -> Tensor:
    """The routed experts of one layer."""
    g = b.g
    n_tokens = x.ne[1]
    weights, ids, start, plain = _route(b, prefix, x, n_used)
    g.expand(weights)
    end = len(g.nodes)
    rows = g.view(x, x.ne[0], 1, n_tokens, op="RESHAPE")
    if b.arch == "llama4":
        rows = g.like("MUL", g.make("REPEAT", (x.ne[0], n_used, n_tokens), rows), weights)
    hidden = _experts(b, prefix, rows, ids)
    down = b.need(f"{prefix}ffn_down_exps.weight")
    experts = _biased(b, f"{prefix}ffn_down_exps.bias", g.matmul_id(down, hidden, ids), ids)
    weighted = experts if b.arch == "llama4" else g.like("MUL", experts, weights)
    g.expand(weighted)
    if plain:
        g.fused_routes.append((start, end))
    parts = [g.expand(g.view(weighted, x.ne[0], n_tokens)) for _ in range(n_used)]
    out = parts[0]
    for part in parts[1:]:
        out = g.expand(g.make("ADD", (x.ne[0], n_tokens), out, part))
    if n_used == 1:
        return g.make("CONT", (x.ne[0], n_tokens), out)
    if n_used <= _MAX_FUSED_REDUCTION and weighted is not experts:
        g.fused_reductions.append((weighted, (experts, weights), out))
    return out


def _route(b: Blocks, prefix: str, x: Tensor, n_used: int) -> tuple[Tensor, Tensor, Tensor, bool]:
    """(weights, ids, first node of the fused group, whether CUDA fuses it)."""
    g, n_tokens = b.g, x.ne[1]
    logits = g.matmul(b.need(f"{prefix}ffn_gate_inp.weight"), x)
    bias = b.w(f"{prefix}ffn_gate_inp.bias")
    if bias is not None:
        logits = b.add(logits, bias)
    n_expert = logits.ne[0]
    gating = int(b.number("expert_gating_func", 0)) or (SIGMOID if b.arch in _SIGMOID_BY_DEFAULT else SOFTMAX)
    if b.arch == "gpt-oss":
        gating = SOFTMAX_WEIGHT
    probs = {SOFTMAX: lambda: g.like("SOFT_MAX", logits), SOFTMAX_WEIGHT: lambda: logits,
             SQRT_SOFTPLUS: lambda: g.like("SQRT", b.unary(logits))}.get(gating, lambda: b.unary(logits))()  # fmt: skip
    selection = probs
    extra = b.w(f"{prefix}exp_probs_b.bias")
    if extra is not None:
        selection = b.add(probs, extra)
    groups = int(b.number("expert_group_count", 0))
    if groups > 1:
        selection = _mask_groups(b, selection, n_expert, groups)
    ids = g.view(g.make("ARGSORT", (n_expert, n_tokens), selection), n_used, n_tokens)
    weights = g.make("GET_ROWS", (1, n_used, n_tokens), g.view(probs, 1, n_expert, n_tokens, op="RESHAPE"), ids)
    if gating == SOFTMAX_WEIGHT:
        weights = g.like("SOFT_MAX", g.view(weights, n_used, n_tokens, op="RESHAPE"))
        weights = g.view(weights, 1, n_used, n_tokens, op="RESHAPE")
    if _normalizes(b):
        flat = g.view(weights, n_used, n_tokens, op="RESHAPE")
        total = g.like("CLAMP", g.make("SUM_ROWS", (1, n_tokens), flat))
        weights = g.view(g.like("DIV", flat, total), 1, n_used, n_tokens, op="RESHAPE")
    if b.number("expert_weights_scale", 0) not in (0, 1):
        weights = b.scale(weights)
    power_of_two = n_expert & (n_expert - 1) == 0 and n_expert <= _MAX_FUSED_EXPERTS
    fused = groups <= 1 and (power_of_two or n_expert in _ODD_FUSED_EXPERTS) and gating in (SOFTMAX, SIGMOID)
    return weights, ids, probs, fused


def _normalizes(b: Blocks) -> bool:
    if b.arch in _NOT_NORMALIZED:
        return False
    return bool(b.meta.get(f"{b.arch}.expert_weights_norm", False)) if b.arch in _READS_NORM else True


def _mask_groups(b: Blocks, selection: Tensor, n_expert: int, groups: int) -> Tensor:
    """Only the experts of the best groups stay selectable (DeepSeek-V3)."""
    g, n_tokens = b.g, selection.ne[1]
    per_group, used = n_expert // groups, int(b.number("expert_group_used_count", 1))
    grouped = g.view(selection, per_group, groups, n_tokens, op="RESHAPE")
    top = g.view(g.make("ARGSORT", (per_group, groups, n_tokens), grouped), 2, groups, n_tokens)
    single = g.view(grouped, 1, per_group, groups, n_tokens, op="RESHAPE")
    scores = g.make("GET_ROWS", (1, 2, groups, n_tokens), single, top)
    scores = g.make("SUM_ROWS", (1, groups, n_tokens), g.view(scores, 2, groups, n_tokens, op="RESHAPE"))
    scores = g.view(scores, groups, n_tokens, op="RESHAPE")
    best = g.view(g.make("ARGSORT", (groups, n_tokens), scores), used, n_tokens)
    kept = g.make("GET_ROWS", (per_group, used, n_tokens), grouped, best)
    filled = g.make("FILL", grouped.ne, grouped)
    return g.view(g.into("SET_ROWS", filled, kept, best, filled), n_expert, n_tokens, op="RESHAPE")


def _experts(b: Blocks, prefix: str, rows: Tensor, ids: Tensor) -> Tensor:
    g = b.g
    merged = b.w(f"{prefix}ffn_gate_up_exps.weight")
    if merged is not None:
        both = _biased(b, f"{prefix}ffn_gate_up_exps.bias", g.matmul_id(merged, rows, ids), ids)
        half = (both.ne[0] // 2, *both.ne[1:])
        return g.make("GLU", half, g.view(both, *half), g.view(both, *half))
    up = _biased(b, f"{prefix}ffn_up_exps.bias", g.matmul_id(b.need(f"{prefix}ffn_up_exps.weight"), rows, ids), ids)
    gate = b.w(f"{prefix}ffn_gate_exps.weight")
    if gate is None:
        return g.like("SQR", b.unary(up)) if b.arch == "nemotron_h_moe" else b.unary(up)
    return g.like("GLU", _biased(b, f"{prefix}ffn_gate_exps.bias", g.matmul_id(gate, rows, ids), ids), up)


def _biased(b: Blocks, name: str, x: Tensor, ids: Tensor) -> Tensor:
    bias = b.w(name)
    return x if bias is None else b.g.like("ADD_ID", x, bias, ids)
