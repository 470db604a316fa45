"""`quantplan build org/name`: whole processes against a hub on loopback, the real client, converter and tools."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hub_build import TEXT, borrowing_cache, build, config, refused, tiny
from loopback_hub import Hole, LoopbackHub

from quantplan.places import data_file


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as served:
        yield served


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return borrowing_cache(tmp_path)


def fetched(hub: LoopbackHub) -> int:
    """Bytes of weights that went over the wire, headers aside."""
    return sum(entry.n_sent for entry in hub.log if "/cdn/" in entry.path and entry.n_sent > 200_000)


@pytest.mark.tools
@pytest.mark.build
def test_from_a_repository_to_an_artifact(hub: LoopbackHub, cache: Path, toolchain: object) -> None:
    """With a wrong byte, a reset and an error on the way; then the second preset without a byte from the hub."""
    files = tiny(inference__py=None)
    files["images/logo.png"] = bytes(9000)
    files["onnx/model.onnx"] = bytes(9000)
    commit = hub.add("org/Tiny-Chat", files, licence="mit").commit
    weights = hashlib.sha256(bytes(files["model.safetensors"])).hexdigest()  # type: ignore[arg-type]
    hub.fail(f"/cdn/{weights}", status=500, times=1)
    (cache.parent / "text.txt").write_text(TEXT)
    words = ("org/Tiny-Chat", "--quant", "Q8_0", "--text", "t=text.txt", "--chunks", "2", "--json")
    dry = build(hub, cache, *words, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    told = json.loads(dry.stdout)["data"]
    assert told["revision"] == commit
    assert {file["name"] for file in told["files"]} == {
        "config.json", "generation_config.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja",
        "README.md", "model.safetensors",
    }  # fmt: skip
    assert fetched(hub) == 0
    hub.fail(f"/cdn/{weights}", reset_after=3_000_000, times=1)
    hub.fail(f"/cdn/{weights}", flip_at=4_000_000, times=1)
    done = build(hub, cache, *words)
    assert done.returncode in (0, 5), done.stderr
    assert "model.safetensors: what came is not what the hub describes (hash), attempt 1 of 3" in done.stderr
    assert "org/Tiny-Chat [########################] 100 %" in done.stderr
    artifact = cache.parent / "artifacts" / "Tiny-Chat-Q8_0"
    receipt = json.loads((artifact / "artifact.json").read_text())
    assert (receipt["source"]["repo"], receipt["source"]["revision"]) == ("org/Tiny-Chat", commit)
    named = {file["name"]: file["sha256"] for file in receipt["source"]["files"]}
    assert named["model.safetensors"] == weights
    sizes = told["sizes"]
    assert (artifact / "Tiny-Chat-Q8_0.gguf").stat().st_size == sizes["Q8_0"]
    assert (cache.parent / "artifacts" / ".work" / "Tiny-Chat" / "Tiny-Chat-BF16.gguf").stat().st_size == sizes["BF16"]
    assert not any("onnx" in entry.path or "images" in entry.path for entry in hub.log)
    hub.log.clear()
    assert build(hub, cache, *words, "--quant", "Q6_K").returncode in (0, 5)
    assert fetched(hub) == 0


def told_refusal(hub: LoopbackHub, cache: Path, *words: str) -> dict[str, Any]:
    done = build(hub, cache, *words, "--json")
    told: Mapping[str, Any] = json.loads(done.stdout)
    return dict(told["error"])


NETWORK = "check the network and HF_ENDPOINT; local files, folders and catalog models need neither"


def test_access_is_refused_before_any_work(hub: LoopbackHub, cache: Path) -> None:
    hub.add("org/gated", tiny(), gated=True)
    refused(
        build(hub, cache, "org/gated"), 1, "org/gated: this repository is gated: no token was given",
        "accept its terms at https://huggingface.co/org/gated, then: hf auth login",
    )  # fmt: skip
    hub.granted = False
    refused(
        build(hub, cache, "org/gated", HF_TOKEN=hub.token), 1,
        "org/gated: this repository is gated: your token's account has not been granted access",
        "accept its terms at https://huggingface.co/org/gated",
    )  # fmt: skip
    refused(
        build(hub, cache, "org/nosuch"), 1,
        "the hub has no repository 'org/nosuch', or it is private and your token does not open it",
        "check the spelling; if it is private: hf auth login",
    )  # fmt: skip
    hub.add("org/there", tiny())
    done = build(hub, cache, "org/there@v9")
    assert (done.returncode, done.stderr.splitlines()[0]) == (1, "Error: org/there: no revision 'v9'")
    refused(
        build(hub, cache, "org/gated", HF_TOKEN="hf_old"), 1,
        "org/gated: the hub does not accept the token (invalid or expired)",
        "hf auth login stores a new token; HF_TOKEN in the environment comes before it",
    )  # fmt: skip
    assert fetched(hub) == 0
    assert not (cache.parent / "artifacts").exists()


def test_no_network_and_a_hub_that_fails(hub: LoopbackHub, cache: Path) -> None:
    dead = LoopbackHub()
    dead._server.server_close()
    done = build(hub, cache, "org/model", HF_ENDPOINT=dead.url)
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: {dead.url}/org/model: no connection (")
    assert done.stderr.endswith(f"Hint: {NETWORK}\n")
    done = build(hub, cache, "org/model", HF_HUB_OFFLINE="1")
    assert done.stderr.startswith("Error: org/model: the hub may not be asked (offline mode)")
    hub.add("org/model", tiny())
    hub.fail("/api/", status=429, headers={"Retry-After": "30"})
    refused(
        build(hub, cache, "org/model"), 1,
        f"{hub.url}/org/model: rate limited by the server; try again in 30 s",
        "wait 30 s; with a token the limit is higher: hf auth login",
    )  # fmt: skip


def test_code_and_pickles_need_a_yes(hub: LoopbackHub, cache: Path) -> None:
    auto_map = {"AutoConfig": "configuration_x.XConfig", "AutoTokenizer": ["tokenization_x.XTok", None]}
    hub.add("org/code", tiny(config__json=config(auto_map=auto_map)))
    refused(
        build(hub, cache, "org/code"), 1,
        "org/code: config.json (auto_map) asks for Python code of the repository "
        "(configuration_x.py, tokenization_x.py), which nobody here has read",
        "read that code; to let the conversion run it: --trust-remote-code",
    )  # fmt: skip
    hub.add("org/py", tiny(modeling_x__py=b"print('hello')"))
    done = build(hub, cache, "org/py")
    assert done.stderr.startswith("Error: org/py: it holds Python code of the repository (modeling_x.py), which nobody")
    hub.add("org/pickle", {**tiny(model__safetensors=None), "pytorch_model.bin": b"\x80\x02"})
    refused(
        build(hub, cache, "org/pickle"), 1,
        "org/pickle: its weights are pickled (pytorch_model.bin), and there are no safetensors",
        "pickled files can hold code; torch reads them as weights only with --allow-pickle",
    )  # fmt: skip
    hub.add("org/none", tiny(model__safetensors=None))
    assert "Error: org/none: has no *.safetensors weights\n" in build(hub, cache, "org/none").stderr
    hub.add("org/m-GGUF", {"m-Q4_K_M.gguf": b"GGUF", "m-Q8_0.gguf": b"GGUF"})
    refused(
        build(hub, cache, "org/m-GGUF"), 1,
        "org/m-GGUF: it holds finished GGUF files and no checkpoint to build from",
        "quantplan pull org/m-GGUF",
    )  # fmt: skip


def test_an_index_that_leaves_the_folder(hub: LoopbackHub, cache: Path) -> None:
    index = {"weight_map": {"a": "../../evil.safetensors"}}
    hub.add("org/evil", {**tiny(), "model.safetensors.index.json": json.dumps(index).encode()})
    done = build(hub, cache, "org/evil")
    assert done.returncode == 1
    assert "'../../evil.safetensors' is not a safetensors file of this model" in done.stderr


def gpt_oss() -> dict[str, bytes | Hole]:
    """A gpt-oss of one layer: experts in MXFP4, the rest bf16; the weights are a hole."""
    d, f, e, v = 256, 256, 4, 768
    told = {
        "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "hidden_size": d, "intermediate_size": f,
        "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "vocab_size": v,
        "num_local_experts": e, "num_experts_per_tok": 2, "sliding_window": 128, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096, "layer_types": ["sliding_attention"], "tie_word_embeddings": False,
        "rope_theta": 150000, "rope_scaling": {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0,
        "beta_slow": 1.0, "original_max_position_embeddings": 4096, "truncate": False},
        "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]},
    }  # fmt: skip
    a, m = "model.layers.0.self_attn", "model.layers.0.mlp"
    shapes: dict[str, tuple[str, list[int]]] = {
        "model.embed_tokens.weight": ("BF16", [v, d]), "lm_head.weight": ("BF16", [v, d]),
        "model.norm.weight": ("BF16", [d]), "model.layers.0.input_layernorm.weight": ("BF16", [d]),
        "model.layers.0.post_attention_layernorm.weight": ("BF16", [d]), f"{a}.sinks": ("BF16", [4]),
        f"{a}.q_proj.weight": ("BF16", [256, d]), f"{a}.q_proj.bias": ("BF16", [256]),
        f"{a}.k_proj.weight": ("BF16", [128, d]), f"{a}.k_proj.bias": ("BF16", [128]),
        f"{a}.v_proj.weight": ("BF16", [128, d]), f"{a}.v_proj.bias": ("BF16", [128]),
        f"{a}.o_proj.weight": ("BF16", [d, 256]), f"{a}.o_proj.bias": ("BF16", [d]),
        f"{m}.router.weight": ("BF16", [e, d]), f"{m}.router.bias": ("BF16", [e]),
        f"{m}.experts.gate_up_proj_blocks": ("U8", [e, 2 * f, d // 32, 16]),
        f"{m}.experts.gate_up_proj_scales": ("U8", [e, 2 * f, d // 32]),
        f"{m}.experts.gate_up_proj_bias": ("BF16", [e, 2 * f]),
        f"{m}.experts.down_proj_blocks": ("U8", [e, d, f // 32, 16]),
        f"{m}.experts.down_proj_scales": ("U8", [e, d, f // 32]), f"{m}.experts.down_proj_bias": ("BF16", [e, d]),
    }  # fmt: skip
    header: dict[str, Any] = {}
    at = 0
    for name, (dtype, shape) in shapes.items():
        size = 2 if dtype == "BF16" else 1
        for dim in shape:
            size *= dim
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(header).encode()
    weights = Hole(len(raw).to_bytes(8, "little") + raw, 8 + len(raw) + at)
    return {**tiny(config__json=json.dumps(told).encode()), "model.safetensors": weights}


def test_what_is_quantized_is_not_quantized_again(hub: LoopbackHub, cache: Path) -> None:
    """MXFP4 experts stay MXFP4: said before the download, with what can be built instead."""
    hub.add("org/oss", gpt_oss())
    refused(
        build(hub, cache, "org/oss", "--quant", "Q4_K_M"), 2,
        "org/oss: Q4_K_M would quantize 3 tensors again that are MXFP4 in the source, which llama-quantize refuses; "
        "possible: MXFP4_MOE",
        "quantplan build org/oss --quant MXFP4_MOE",
    )  # fmt: skip
    assert fetched(hub) == 0


@pytest.mark.tools
@pytest.mark.build
def test_mxfp4_moe_of_such_a_source_passes_its_preflight(hub: LoopbackHub, cache: Path, toolchain: object) -> None:
    hub.add("org/oss", gpt_oss())
    done = build(hub, cache, "org/oss", "--quant", "MXFP4_MOE", "--dry-run", "--json")
    checks = {check["name"]: check["level"] for check in json.loads(done.stdout)["data"]["checks"]}
    assert checks["MXFP4_MOE"] == "ok"
    assert [name for name, level in checks.items() if level == "refused"] == ["tokenizer"]  # it is another model's


def bpe_of_ones_own() -> dict[str, bytes]:
    """A byte-level tokenizer.json that nobody has ever seen: its hash is in no table."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel()
    made.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>", "</s>"]))
    plain = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    return {"tokenizer.json": made.to_str().encode(), "tokenizer_config.json": json.dumps(plain).encode()}


@pytest.mark.tools
@pytest.mark.build
def test_an_unknown_tokenizer_is_found_without_weights(hub: LoopbackHub, cache: Path, toolchain: object) -> None:
    told = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
    hub.add("org/bpe", {**tiny(tokenizer__model=None, config__json=config(**told)), **bpe_of_ones_own()})
    refused(
        build(hub, cache, "org/bpe"), 1,
        "org/bpe: the pinned converter does not recognize its tokenizer: "
        "its pre-tokenizer is unknown to this build of llama.cpp",
        "a newer llama.cpp may know it; a finished GGUF needs no conversion: quantplan pull",
    )  # fmt: skip
    hub.add("org/broken", tiny(tokenizer__model=b"no tokenizer"))
    done = build(hub, cache, "org/broken")
    assert done.stderr.startswith("Error: org/broken: the pinned converter does not recognize its tokenizer: ")
    assert "Traceback" not in done.stderr
    assert fetched(hub) == 0
    hub.add("org/without", tiny(tokenizer__model=None))
    assert (
        "org/without: has no tokenizer (tokenizer.model, tokenizer.json, …)" in build(hub, cache, "org/without").stderr
    )


@pytest.mark.tools
@pytest.mark.build
def test_a_chat_template_that_is_not_there_or_gets_lost(hub: LoopbackHub, cache: Path, toolchain: object) -> None:
    hub.add("org/base", tiny(chat_template__jinja=None))
    done = build(hub, cache, "org/base", "--dry-run")
    assert done.returncode == 0
    assert "  warn chat template org/base: no chat template: chat requests will be formatted by a guess" in done.stdout
    shipped = json.loads(data_file("bundled", "quantplan-tiny", "tokenizer_config.json").read_text())
    wrong = json.dumps({**shipped, "chat_template": {"default": "x"}}).encode()
    hub.add("org/lost", tiny(tokenizer_config__json=wrong))
    refused(
        build(hub, cache, "org/lost"), 1,
        "org/lost: it has a chat template, and the converter does not put it into the GGUF",
        "give serve the template: put it into tokenizer_config.json as chat_template",
    )  # fmt: skip


@pytest.mark.tools
@pytest.mark.build
def test_an_unsupported_architecture(hub: LoopbackHub, cache: Path, toolchain: object) -> None:
    hub.add("org/new", tiny(config__json=config(architectures=["BrandNewForCausalLM"])))
    done = build(hub, cache, "org/new")
    assert done.stderr.startswith(
        "Error: org/new: architecture 'BrandNewForCausalLM' is not supported by the pinned llama.cpp\n"
    )
    assert fetched(hub) == 0


@pytest.mark.tools
@pytest.mark.build
def test_no_space_for_what_would_come(hub: LoopbackHub, cache: Path, toolchain: object) -> None:
    """A checkpoint of 60 TB is refused with what the build would need, before the first byte."""
    big = json.loads(config())
    wide = 2**20
    big |= {"hidden_size": wide, "intermediate_size": 4 * wide, "vocab_size": 768}
    shapes: dict[str, list[int]] = {
        "model.embed_tokens.weight": [768, wide], "lm_head.weight": [768, wide], "model.norm.weight": [wide],
    }  # fmt: skip
    heads, kv = big["num_attention_heads"], big["num_key_value_heads"]
    for i in range(big["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        narrow = wide // heads * kv
        shapes |= {
            f"{layer}.self_attn.q_proj.weight": [wide, wide], f"{layer}.self_attn.k_proj.weight": [narrow, wide],
            f"{layer}.self_attn.v_proj.weight": [narrow, wide], f"{layer}.self_attn.o_proj.weight": [wide, wide],
            f"{layer}.mlp.gate_proj.weight": [4 * wide, wide], f"{layer}.mlp.up_proj.weight": [4 * wide, wide],
            f"{layer}.mlp.down_proj.weight": [wide, 4 * wide], f"{layer}.input_layernorm.weight": [wide],
            f"{layer}.post_attention_layernorm.weight": [wide],
        }  # fmt: skip
    header: dict[str, Any] = {}
    at = 0
    for name, shape in shapes.items():
        size = 2
        for dim in shape:
            size *= dim
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(header).encode()
    weights = Hole(len(raw).to_bytes(8, "little") + raw, 8 + len(raw) + at)
    hub.add("org/huge", {**tiny(config__json=json.dumps(big).encode()), "model.safetensors": weights})
    done = build(hub, cache, "org/huge", "--dry-run", "--json")
    told = json.loads(done.stdout)["data"]
    assert told, done.stderr
    kinds = {check["kind"] for check in told["checks"] if check["level"] == "refused"}
    assert kinds == {"NoDiskSpace", "DoesNotFit"}
    assert told["disk"]["mode"] == "tight"
    assert done.returncode == 1
    assert fetched(hub) == 0


@pytest.mark.tools
@pytest.mark.build
def test_tight_drops_what_it_downloaded_and_never_fetches_it_again(
    hub: LoopbackHub, cache: Path, toolchain: object
) -> None:
    """The weights go once they are converted, and a build that has nothing left to convert fetches none of them."""
    hub.add("org/Tiny-Chat", tiny(), licence="mit")
    (cache.parent / "text.txt").write_text(TEXT)
    words = ("org/Tiny-Chat", "--text", "t=text.txt", "--chunks", "2", "--disk", "tight")
    done = build(hub, cache, *words, "--quant", "Q8_0", "--json")
    assert json.loads(done.stdout)["data"]["artifacts"], done.stderr
    assert not list((cache / "downloads").rglob("*.safetensors"))
    before = fetched(hub)
    assert before > 0
    receipt = json.loads((cache.parent / "artifacts" / "Tiny-Chat-Q8_0" / "artifact.json").read_text())
    weights = hashlib.sha256(bytes(tiny()["model.safetensors"])).hexdigest()  # type: ignore[arg-type]
    assert weights in {file["sha256"] for file in receipt["source"]["files"]}
    again = build(hub, cache, *words, "--quant", "Q8_0", "--json")
    assert [one["fresh"] for one in json.loads(again.stdout)["data"]["artifacts"]] == [False], again.stderr
    assert fetched(hub) == before
