"""What each layer of an architecture keeps in the context memory.

Every table here restates a rule of llama.cpp 0c1e570; the file it comes from is named beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from quantplan.model.facts import LayerFacts

# src/llama-model.cpp, create_memory: these have no context memory.
NO_MEMORY = frozenset({
    "bert", "jina-bert-v2", "jina-bert-v3", "nomic-bert", "nomic-bert-moe", "neo-bert", "eurobert",
    "wavtokenizer-dec", "modern-bert", "gemma-embedding", "dream", "llada", "llada-moe", "rnd1",
})  # fmt: skip
# Caches of their own that are not modelled here (src/llama-kv-cache-dsv4.cpp, llama-memory-hybrid-idx.cpp) or that
# live in another model's context.
UNMODELLED = frozenset({"deepseek4", "qwen4exp", "glm5-next", "gemma4-assistant", "dflash", "pockettts"})

# src/llama-arch.cpp: llm_arch_is_recurrent.
_RECURRENT = frozenset({"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"})
# src/models/*.cpp: a layer is recurrent where it has no KV heads.
_RECURRENT_WITHOUT_HEADS = frozenset({
    "jamba", "plamo2", "granitehybrid", "lfm2", "lfm2moe", "kimi-linear", "kimi-k3", "bailingmoe3", "glm5-next",
})  # fmt: skip
# src/models/qwen3next.cpp and its kin: every n-th layer is full attention, the others are recurrent.
_FULL_ATTENTION_INTERVAL = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4, "qwen4exp": 4, "minimax-01": 8}
# The lightning indexer's key cache: src/llama-kv-cache-dsa.cpp and llama-kv-cache-msa.cpp.
_INDEXED = frozenset({"deepseek32", "glm-dsa", "hy_v4", "dots3note", "minimax-m3"})
_GEMMA3N_KV_LAYERS = 20  # src/models/gemma3n.cpp: hparams.n_layer_kv_from_start


@dataclass(frozen=True, slots=True, kw_only=True)
class _Swa:
    """When and where an architecture slides: every `period`-th layer is full attention (the last of a period, or
    the first); period None: the metadata must list the layers."""

    period: int | None
    n_swa: int | None = None  # the window the engine assumes when the key is missing
    dense_first: bool = False
    optional: bool = False  # only when the key is there and above 0
    fixed: bool = False  # the key's number is ignored


# src/models/<arch>.cpp, load_arch_hparams.
_SWA: dict[str, _Swa] = {
    "afmoe": _Swa(period=4, optional=True),
    "cohere2": _Swa(period=4),
    "cohere2moe": _Swa(period=4, dense_first=True),
    "deepseek4": _Swa(period=0),
    "dots3note": _Swa(period=None),
    "exaone-moe": _Swa(period=4, n_swa=128),
    "exaone4": _Swa(period=4, n_swa=4096),  # 64 layers only, see _swa_rule
    "gemma2": _Swa(period=2, n_swa=4096),
    "gemma3": _Swa(period=6, optional=True),
    "gemma3n": _Swa(period=5),
    "gemma4": _Swa(period=None),
    "gemma4-assistant": _Swa(period=None),
    "gemma-embedding": _Swa(period=6),
    "gpt-oss": _Swa(period=2),
    "granite_swa": _Swa(period=None),
    "laguna": _Swa(period=4, dense_first=True, optional=True),
    "llama4": _Swa(period=4, n_swa=8192, fixed=True),
    "maple": _Swa(period=None),
    "mellum": _Swa(period=4, optional=True),
    "mimo2": _Swa(period=None),
    "modern-bert": _Swa(period=3, dense_first=True, optional=True),
    "muse-glimmer": _Swa(period=4),
    "olmo2": _Swa(period=4, optional=True),
    "plamo3": _Swa(period=8, optional=True),
    "smallthinker": _Swa(period=4, n_swa=4096, dense_first=True, optional=True, fixed=True),
    "spark2_5": _Swa(period=None),
    "step35": _Swa(period=None),
}

_PLAIN = frozenset({
    "llama", "deci", "falcon", "grok", "gpt2", "gptj", "gptneox", "mpt", "baichuan", "starcoder", "refact", "bloom",
    "stablelm", "qwen", "qwen2", "qwen2moe", "qwen2vl", "qwen3", "qwen3moe", "qwen3vl", "qwen3vlmoe", "phi2", "phi3",
    "phimoe", "plamo", "codeshell", "orion", "internlm2", "minicpm", "minicpm3", "gemma", "starcoder2", "falcon-h1",
    "xverse", "command-r", "dbrx", "olmo", "olmoe", "openelm", "arctic", "deepseek", "deepseek2", "deepseek2-ocr",
    "chatglm", "glm4", "glm4moe", "bitnet", "t5", "t5encoder", "jais", "jais2", "nemotron", "nemotron_h",
    "nemotron_h_moe", "exaone", "granite", "granitemoe", "graniteswitch", "chameleon", "plm", "bailingmoe",
    "bailingmoe2", "dots1", "arcee", "ernie4_5", "ernie4_5-moe", "hunyuan-moe", "hunyuan-dense", "hunyuan_vl", "hy_v3",
    "smollm3", "seed_oss", "grovemoe", "apertus", "hrm_text", "minimax-m2", "cogvlm", "pangu-embedded", "mistral3",
    "eagle3", "mistral4", "paddleocr", "llama-embed", "maincoder", "talkie", "nanbeige", "qwen3tts",
})  # fmt: skip
KNOWN_ARCHITECTURES = (
    _PLAIN | NO_MEMORY | UNMODELLED | _RECURRENT | _RECURRENT_WITHOUT_HEADS | set(_FULL_ATTENTION_INTERVAL) | _INDEXED
    | set(_SWA)
)  # fmt: skip


class Keys(Protocol):
    """What the rules read of the metadata."""

    arch: str

    def get(self, name: str) -> object | None: ...
    def number(self, name: str, default: int | None = None) -> int: ...
    def per_layer(self, name: str, n_layer: int, default: int | Sequence[int]) -> list[int]: ...
    def flags(self, name: str, n_layer: int) -> list[bool] | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPlan:
    """The layers of one model, and the sliding window (0: none)."""

    arch: str
    layers: tuple[LayerFacts, ...]
    n_swa: int
    known: bool


def plan_layers(keys: Keys, tensor_names: Collection[str]) -> LayerPlan:
    """Every layer's part of the context memory, the draft (MTP) layers at the end included but without a cache."""
    n_layer = keys.number("block_count")
    n_nextn = keys.number("nextn_predict_layers", 0)
    trunk = n_layer - n_nextn if n_nextn < n_layer else n_layer
    n_swa, is_swa = _swa_pattern(keys, n_layer, trunk)
    n_head = keys.per_layer("attention.head_count", n_layer, 0)
    n_head_kv = keys.per_layer("attention.head_count_kv", n_layer, n_head)
    recurrent = _recurrent_layers(keys, n_layer, trunk, n_head_kv)
    has_kv = _attention_layers(keys, n_layer, trunk, recurrent)
    head = _head_sizes(keys, n_head[0] if n_head else 0)
    state = _state_sizes(keys, n_head[0] if n_head else 0)
    layers = [
        LayerFacts(
            n_head=n_head[il],
            n_head_kv=n_head_kv[il],
            n_embd_head_k=head(is_swa[il])[0],
            n_embd_head_v=head(is_swa[il])[1],
            is_swa=is_swa[il],
            has_kv=has_kv[il],
            n_embd_r=state[0] if recurrent[il] and il < trunk else 0,
            n_embd_s=state[1] if recurrent[il] and il < trunk else 0,
        )
        for il in range(n_layer)
    ]
    layers = _with_indexer(keys, layers, trunk, tensor_names) * _n_loops(keys)
    return LayerPlan(arch=keys.arch, layers=tuple(layers), n_swa=n_swa, known=keys.arch in KNOWN_ARCHITECTURES)


def _swa_pattern(keys: Keys, n_layer: int, trunk: int) -> tuple[int, list[bool]]:
    """The window and which layers slide (llama_model_base::load_swa_pattern, llama_hparams::set_swa_pattern)."""
    rule = _SWA.get(keys.arch)
    window = keys.number("attention.sliding_window", 0)
    none = 0, [False] * n_layer
    if keys.arch == "lfm2" and window > 0:  # src/models/lfm2.cpp: every attention layer slides
        return window, [heads > 0 for heads in keys.per_layer("attention.head_count_kv", n_layer, 0)]
    if rule is None or (rule.optional and window == 0) or (keys.arch == "exaone4" and trunk != 64):
        return none
    if keys.arch == "llama4" and keys.get("attention.sliding_window") is not None and window == 0:
        return none
    n_swa = rule.n_swa if rule.n_swa is not None and (rule.fixed or window == 0) else window
    listed = keys.flags("attention.sliding_window_pattern", n_layer)
    if listed is not None:
        return n_swa, listed
    if rule.period is None:
        return none
    period = keys.number("attention.sliding_window_pattern", rule.period)
    return n_swa, [il < trunk and _slides(il, period, dense_first=rule.dense_first) for il in range(n_layer)]


def _slides(il: int, period: int, *, dense_first: bool) -> bool:
    if period == 0:
        return True
    return il % period != 0 if dense_first else il % period < period - 1


def _recurrent_layers(keys: Keys, n_layer: int, trunk: int, n_head_kv: list[int]) -> list[bool]:
    arch = keys.arch
    if arch in _RECURRENT or arch == "falcon-h1":
        return [True] * n_layer
    if arch in _RECURRENT_WITHOUT_HEADS:
        return [heads == 0 and il < trunk for il, heads in enumerate(n_head_kv)]
    if arch in ("nemotron_h", "nemotron_h_moe"):  # a layer is one of Mamba, attention, feed-forward
        n_ff = keys.per_layer("feed_forward_length", n_layer, 0)
        return [il < trunk and n_head_kv[il] == 0 and n_ff[il] == 0 for il in range(n_layer)]
    if arch in _FULL_ATTENTION_INTERVAL:
        listed = keys.flags("attention.recurrent_layers", n_layer)
        every = keys.number("full_attention_interval", _FULL_ATTENTION_INTERVAL[arch])
        return listed if listed is not None else [il < trunk and (il + 1) % every != 0 for il in range(n_layer)]
    return [False] * n_layer


def _attention_layers(keys: Keys, n_layer: int, trunk: int, recurrent: list[bool]) -> list[bool]:
    """Which layers have a KV cache of their own in the main context (the filters of create_memory)."""
    arch = keys.arch
    if arch in _RECURRENT:
        return [False] * n_layer
    if arch == "falcon-h1":
        return [True] * n_layer
    if arch in ("nemotron_h", "nemotron_h_moe"):
        n_ff = keys.per_layer("feed_forward_length", n_layer, 0)
        return [not recurrent[il] and n_ff[il] == 0 for il in range(n_layer)]
    if arch in _RECURRENT_WITHOUT_HEADS:
        return [not r for r in recurrent]
    shared = keys.number("attention.shared_kv_layers", 0) if arch == "gemma4" else 0
    limit = _GEMMA3N_KV_LAYERS if arch == "gemma3n" else n_layer - shared
    last = n_layer if arch == "graniteswitch" else trunk
    return [not recurrent[il] and il < limit and il < last for il in range(n_layer)]


def _head_sizes(keys: Keys, n_head: int) -> Callable[[bool], tuple[int, int]]:
    """(K, V) elements a KV head as cached, for full and for sliding layers. With MLA there is no V."""
    if n_head == 0:
        return lambda _swa: (0, 0)
    plain = keys.number("embedding_length") // n_head
    k, v = keys.number("attention.key_length", plain), keys.number("attention.value_length", plain)
    k_swa, v_swa = keys.number("attention.key_length_swa", k), keys.number("attention.value_length_swa", v)
    if keys.number("attention.key_length_mla", 0) and keys.number("attention.value_length_mla", 0):
        v = v_swa = 0
    return lambda swa: (k_swa, v_swa) if swa else (k, v)


def _state_sizes(keys: Keys, n_head: int) -> tuple[int, int]:
    """(n_embd_r, n_embd_s) of a recurrent layer and slot, in elements (src/llama-hparams.cpp)."""
    n_embd = keys.number("embedding_length")
    wkv = keys.number("wkv.head_size", 0)
    if wkv:
        return keys.number("token_shift_count", 2) * n_embd, n_embd * wkv
    conv = keys.number("ssm.conv_kernel", 0)
    kda = keys.number("kda.head_dim", 0)
    if kda:
        return 3 * (conv - 1 if conv else 3) * n_head * kda, kda * kda * n_head
    inner, states = keys.number("ssm.inner_size", 0), keys.number("ssm.state_size", 0)
    short = keys.number("shortconv.l_cache", 0)
    r = max(conv - 1, 0) * (inner + 2 * keys.number("ssm.group_count", 0) * states)
    if short:
        r = n_embd * (short - 1)
    if keys.arch == "minimax-01":
        return r, keys.number("attention.key_length", n_embd // max(n_head, 1)) ** 2 * n_head
    return r, states * inner


def _with_indexer(keys: Keys, layers: list[LayerFacts], trunk: int, tensor_names: Collection[str]) -> list[LayerFacts]:
    """Adds the lightning indexer's key cache to the layers that own an indexer."""
    size = keys.number("attention.indexer.key_length", 0)
    if (
        keys.arch not in _INDEXED
        or not size
        or (keys.arch == "hy_v4" and not keys.number("attention.indexer.top_k", 0))
    ):
        return layers
    if keys.arch == "minimax-m3":  # the dense layers at the start carry none
        lead = keys.number("leading_dense_block_count", 0)
        return [
            replace(layer, n_embd_idx_k=size, n_embd_idx_v=layer.n_embd_head_v) if il >= lead else layer
            for il, layer in enumerate(layers)
        ]
    types = keys.get("attention.indexer.types")
    owns = keys.flags("attention.indexer.types", len(layers))
    if owns is None or types is None:
        owns = [keys.arch == "deepseek32" or f"blk.{il}.indexer.attn_k.weight" in tensor_names
                for il in range(len(layers))]  # fmt: skip
    return [replace(layer, n_embd_idx_k=size) if il < trunk and owns[il] else layer for il, layer in enumerate(layers)]


def _n_loops(keys: Keys) -> int:
    """src/models/nanbeige.cpp: the same layers are run several times, each time with a cache of their own."""
    return max(keys.number("num_loops", 1), 1) if keys.arch == "nanbeige" else 1
