"""`quantplan build --disk remote`: whole processes against a hub on loopback, the real client, converter and tools."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_build import TEXT, borrowing_cache, build, config, environment, refused, tiny
from loopback_hub import Hole, LoopbackHub

from quantplan.model.gguf_header import read_gguf_header
from quantplan.pipeline.workspace import build_status
from quantplan.places import data_file

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as served:
        yield served


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    own = borrowing_cache(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    return own


def two_shards() -> dict[str, bytes | Hole]:
    """The bundled model with its weights in two files and an index."""
    whole = data_file("bundled", "quantplan-tiny", "model.safetensors").read_bytes()
    (length,) = struct.unpack_from("<Q", whole)
    header: dict[str, Any] = json.loads(whole[8 : 8 + length])
    header.pop("__metadata__", None)
    data = whole[8 + length :]
    files: dict[str, bytes | Hole] = tiny(model__safetensors=None)
    names = sorted(header, key=lambda name: header[name]["data_offsets"])
    for shard, part in zip(SHARDS, (names[: len(names) // 3], names[len(names) // 3 :]), strict=True):
        begin, end = header[part[0]]["data_offsets"][0], header[part[-1]]["data_offsets"][1]
        own = {n: {**header[n], "data_offsets": [at - begin for at in header[n]["data_offsets"]]} for n in part}
        raw = json.dumps(own).encode()
        files[shard] = struct.pack("<Q", len(raw)) + raw + data[begin:end]
    weight_map = {name: SHARDS[i >= len(names) // 3] for i, name in enumerate(names)}
    files["model.safetensors.index.json"] = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
    return files


def sha256_of_shard(name: str) -> str:
    return hashlib.sha256(bytes(two_shards()[name])).hexdigest()  # type: ignore[arg-type]


def start(hub: LoopbackHub, cache: Path, *words: str) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "quantplan", "build", *words]
    with (cache.parent / "said.txt").open("wb") as said:
        return subprocess.Popen(
            argv, env=environment(hub, cache), cwd=cache.parent, stdout=subprocess.DEVNULL, stderr=said,
            start_new_session=True,
        )  # fmt: skip


WORDS = ("org/Tiny-Chat", "--quant", "BF16", "--text", "t=text.txt", "--chunks", "2")


@pytest.mark.tools
@pytest.mark.build
def test_the_same_bytes_as_with_the_weights_here(hub: LoopbackHub, cache: Path, toolchain: object) -> None:
    """Killed in the first pass when one file is proved, and taken up; faults in both passes; nothing of the weights
    on the disk; then the same conversion from a downloaded folder."""
    hub.add("org/Tiny-Chat", two_shards(), licence="mit")
    large = sha256_of_shard(SHARDS[1])
    hub.fail(f"/cdn/{large}", hold_after=1_000_000, times=2)  # the first one is for the header alone
    killed = start(hub, cache, *WORDS, "--disk", "remote")
    work = cache.parent / "artifacts" / ".work" / "Tiny-Chat"
    assert hub.held.wait(120)
    mark = work / "source.digests.parts" / f"{sha256_of_shard(SHARDS[0])}.json"
    for _ in range(600):
        if mark.exists():
            break
        hub.pause(0.1)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    hub.release.set()
    assert mark.exists()

    hub.log.clear()
    for fault in ({"status": 429, "headers": {"Retry-After": "1"}}, {"reset_after": 900_000}, {"flip_at": 2_000_000},
                  {"cut_after": 800_000}):  # fmt: skip
        hub.fail(f"/cdn/{large}", times=1, **fault)  # type: ignore[arg-type]
    hub.fail(f"/cdn/{sha256_of_shard(SHARDS[0])}", times=1, flip_at=1_000_000)  # in the second pass: it is proved
    done = build(hub, cache, *WORDS, "--disk", "remote", "--explain", "--json")
    artifact = cache.parent / "artifacts" / "Tiny-Chat-BF16"
    assert done.returncode in (0, 5), done.stderr
    assert f"{SHARDS[1]}: what came is not what the hub describes (hash), attempt 1 of 3" in done.stderr
    assert "came with wrong bytes, attempt 1 of 3" in done.stderr
    assert "read source                              runs: never finished here" in done.stderr
    assert "(13.5 MiB of traffic)" in done.stderr
    first = [entry for entry in hub.log if sha256_of_shard(SHARDS[0]) in entry.path]
    assert all(entry.byte_range != f"bytes=0-{len(bytes(two_shards()[SHARDS[0]])) - 1}" for entry in first)  # type: ignore[arg-type]
    assert not [path for path in cache.parent.rglob("*.safetensors") if "toolchains" not in path.parts]
    receipt = json.loads((artifact / "artifact.json").read_text())
    named = {file["name"]: file["sha256"] for file in receipt["source"]["files"]}
    assert {name: named[name] for name in SHARDS} == {name: sha256_of_shard(name) for name in SHARDS}
    assert receipt["source"]["read"]["how"] == "ranges"
    assert [step["name"] for step in receipt["steps"]][:2] == ["read source", "convert"]
    model = next(artifact.glob("*.gguf"))
    assert "tokenizer.chat_template" in read_gguf_header(model).metadata

    hub.log.clear()
    again = build(hub, cache, *WORDS, "--disk", "tight", "--explain")  # the record holds in the other mode too
    assert "convert                                  skipped" in again.stderr
    assert not [entry for entry in hub.log if "/cdn/" in entry.path and entry.n_sent > 200_000]
    (one,) = build_status(cache.parent / "artifacts")
    assert {step["state"] for step in one["steps"]} <= {"done", "not needed"}

    from_folder = build(hub, cache, *WORDS, "--disk", "fast", "--output", "ordinary")
    assert from_folder.returncode in (0, 5), from_folder.stderr
    ordinary = cache.parent / "ordinary" / "Tiny-Chat-BF16"
    assert next(ordinary.glob("*.gguf")).read_bytes() == model.read_bytes()
    told = json.loads((ordinary / "artifact.json").read_text())["source"]
    assert told == {key: value for key, value in receipt["source"].items() if key != "read"}


@pytest.mark.tools
@pytest.mark.build
def test_a_tensor_that_is_wrong_whenever_the_converter_wants_it(
    hub: LoopbackHub, cache: Path, toolchain: object
) -> None:
    """The hub's file changes between the two passes: the build says so and leaves no GGUF."""
    hub.add("org/Tiny-Chat", two_shards(), licence="mit")
    wrong = hub.blobs[sha256_of_shard(SHARDS[1])]
    good = wrong.content
    process = start(hub, cache, *WORDS, "--disk", "remote")
    work = cache.parent / "artifacts" / ".work" / "Tiny-Chat"
    for _ in range(1200):
        if (work / "source.digests.json").exists() or process.poll() is not None:
            break
        hub.pause(0.05)
    assert isinstance(good, bytes)
    wrong.content = good[:2_000_000] + bytes([good[2_000_000] ^ 1]) + good[2_000_001:]
    assert process.wait(300) == 1
    assert not list(work.glob("*.gguf*"))
    said = (cache.parent / "said.txt").read_text()
    assert f"\nError: org/Tiny-Chat/{SHARDS[1]}: the bytes of model." in said
    assert "are not those of the file whose hash was proved, also when they are read again (3 times)" in said
    assert not (work / "source.partial").exists()


def test_what_cannot_be_read_remotely(hub: LoopbackHub, cache: Path) -> None:
    hint = "--disk tight is the smallest use of the disk then"
    refused(
        build(hub, cache, "quantplan-tiny", "--disk", "remote"), 2,
        "quantplan-tiny: its weights cannot be read from the hub by ranges: they are a folder on this disk already",
        hint,
    )  # fmt: skip
    hub.add("org/pickle", {**tiny(model__safetensors=None), "pytorch_model.bin": b"\x80\x02"})
    refused(
        build(hub, cache, "org/pickle", "--disk", "remote", "--allow-pickle"), 2,
        "org/pickle: its weights cannot be read from the hub by ranges: "
        "they are pickled, and only a safetensors file tells where its tensors are", hint,
    )  # fmt: skip
    auto_map = {"AutoConfig": "configuration_x.XConfig"}
    hub.add("org/code", tiny(config__json=config(auto_map=auto_map)))
    done = build(hub, cache, "org/code", "--disk", "remote")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: org/code: config.json (auto_map) asks for Python code of the repository")


def as_large_as(n_bytes: int) -> Hole:
    """The header of a bf16 llama of 768 tokens whose weights take about n_bytes; the rest of it is nowhere."""
    told = json.loads(config())
    heads, kv, layers = told["num_attention_heads"], told["num_key_value_heads"], told["num_hidden_layers"]
    wide = 256 * max(1, int((n_bytes / (2 * layers * (14 + 2 * kv / heads))) ** 0.5) // 256)
    shapes = {"model.embed_tokens.weight": [768, wide], "lm_head.weight": [768, wide], "model.norm.weight": [wide]}
    for i in range(layers):
        layer, narrow = f"model.layers.{i}", wide // heads * kv
        shapes |= {
            f"{layer}.self_attn.q_proj.weight": [wide, wide], f"{layer}.self_attn.k_proj.weight": [narrow, wide],
            f"{layer}.self_attn.v_proj.weight": [narrow, wide], f"{layer}.self_attn.o_proj.weight": [wide, wide],
            f"{layer}.mlp.gate_proj.weight": [4 * wide, wide], f"{layer}.mlp.up_proj.weight": [4 * wide, wide],
            f"{layer}.mlp.down_proj.weight": [wide, 4 * wide], f"{layer}.input_layernorm.weight": [wide],
            f"{layer}.post_attention_layernorm.weight": [wide],
        }  # fmt: skip
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(header).encode()
    return Hole(len(raw).to_bytes(8, "little") + raw, 8 + len(raw) + at)


def width_of(hole: Hole) -> int:
    return int(json.loads(hole.head[8:])["model.norm.weight"]["shape"][0])


@pytest.mark.tools
@pytest.mark.build
def test_the_preflight_chooses_it_where_the_weights_do_not_fit(
    hub: LoopbackHub, cache: Path, toolchain: object
) -> None:
    """A model whose 16-bit file fits on this very disk, but not beside its weights."""
    weights = as_large_as(shutil.disk_usage(cache).free * 52 // 100)
    wide = width_of(weights)
    files = tiny(config__json=config(hidden_size=wide, intermediate_size=4 * wide, vocab_size=768))
    hub.add("org/large", {**files, "model.safetensors": weights})
    words = ("org/large", "--text", "t=text.txt", "--chunks", "2", "--quant", "Q4_K_M", "--dry-run")
    told = json.loads(build(hub, cache, *words, "--json").stdout)["data"]
    assert told["disk"]["mode"] == "remote"
    assert told["remote_bytes"] == weights.n_bytes
    assert told["download_bytes"] < 1_000_000
    check = next(one for one in told["checks"] if one["name"] == "disk")
    assert check["level"] == "ok"
    assert "the weights never lie here: they are read from the hub, twice (" in check["text"]
    tight = build(hub, cache, *words, "--disk", "tight")
    assert "Disk, tight: what lies there after each step" in tight.stdout
    assert "Hint: --disk remote takes " in tight.stderr
    assert not [entry for entry in hub.log if "/cdn/" in entry.path and entry.n_sent > 1_000_000]
