"""MODEL in every form gives one kind of facts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from loopback_hub import Hole, LoopbackHub
from toy_checkpoint import CONFIG, checkpoint_files

from quantplan import errors
from quantplan.model.facts import FactsOrigin, ModelFacts
from quantplan.model.gguf_choice import choose_gguf, model_files, quant_of
from quantplan.model.model_name import HubName, hub_name, hub_name_of_url
from quantplan.model.read import read_model


def write_folder(folder: Path, files: dict[str, bytes | Hole]) -> Path:
    folder.mkdir()
    for name, content in files.items():
        if isinstance(content, Hole):
            with (folder / name).open("wb") as file:
                file.write(content.head)
                file.truncate(content.n_bytes)
        else:
            (folder / name).write_bytes(content)
    return folder


def write_toy_gguf(path: Path) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(512)
    writer.add_embedding_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_feed_forward_length(128)
    writer.add_license("mit")
    writer.add_chat_template("{{ x }}")
    writer.add_token_list(["a"] * 96)
    writer.add_tensor("token_embd.weight", np.zeros((96, 64), dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def same_but_for_its_source(facts: ModelFacts) -> tuple[object, ...]:
    return facts.arch, facts.n_layer, facts.n_vocab, facts.parameters, facts.layers, frozenset(facts.tensors)


def test_a_folder_its_index_a_configuration_and_the_hub_agree(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "toy", checkpoint_files())
    here = read_model(str(folder))
    assert (here.id, here.arch, here.n_layer, here.n_vocab) == ("toy", "llama", 2, 96)
    assert here.parameters == 96 * 64 * 2 + 64 + 2 * (64 * 64 * 2 + 32 * 64 * 2 + 3 * 64 * 128 + 128)
    assert (here.origin, here.licence) == (FactsOrigin.SAFETENSORS_HEADERS, "apache-2.0")
    assert read_model(str(folder / "model.safetensors.index.json")) == here
    derived = read_model(str(folder / "config.json"))
    assert derived.origin == FactsOrigin.CONFIG
    assert same_but_for_its_source(derived) == same_but_for_its_source(here)
    with LoopbackHub() as hub:
        commit = hub.add("org/toy", checkpoint_files()).commit
        there = read_model("org/toy@main", cache=tmp_path / "cache", endpoint=hub.url)
    assert same_but_for_its_source(there) == same_but_for_its_source(here)
    assert (there.id, there.source.repo, there.source.revision) == ("org/toy", "org/toy", commit)


def test_a_gguf_a_folder_with_one_and_an_address_agree(tmp_path: Path) -> None:
    write_toy_gguf(tmp_path / "toy.gguf")
    here = read_model(str(tmp_path / "toy.gguf"))
    assert (here.id, here.n_vocab, here.licence, here.has_chat_template) == ("toy", 96, "mit", True)
    assert here.origin == FactsOrigin.GGUF_HEADER
    assert read_model(str(tmp_path)) == here
    with LoopbackHub() as hub:
        hub.add("org/toy-GGUF", {"toy-F16.gguf": (tmp_path / "toy.gguf").read_bytes()}, licence="mit")
        there = read_model("org/toy-GGUF:f16", cache=tmp_path / "cache", endpoint=hub.url)
    assert same_but_for_its_source(there) == same_but_for_its_source(here)


def test_a_catalog_name_in_any_case_needs_no_network(tmp_path: Path) -> None:
    with LoopbackHub() as hub:
        full = read_model("Qwen/Qwen3-8B", cache=tmp_path, endpoint=hub.url)
        assert read_model("qwen3-8b", cache=tmp_path, endpoint=hub.url) == full
        assert hub.log == []
    assert (full.id, full.origin, full.arch, full.n_layer) == ("Qwen/Qwen3-8B", FactsOrigin.CATALOG, "qwen3", 36)


def test_what_nobody_knows(tmp_path: Path) -> None:
    with pytest.raises(errors.UnknownModel, match=r"near names: .*Qwen/Qwen3-8B"):
        read_model("qwen3-8bb")
    for missing in ("./nothing", "/nothing/at/all", "nothing.gguf", "~nobody-at-all/x"):
        with pytest.raises(errors.BadModelFile, match="no such file or folder"):
            read_model(missing)
    for odd in ("", "a\0b", "x" * 5000, "y/" * 3000, "a/b/c", "org/../x", "org/name:"):
        with pytest.raises(errors.QuantplanError):
            read_model(odd)


Edit = Callable[[dict[str, bytes | Hole]], object]
INDEX = "model.safetensors.index.json"


def index(files: dict[str, bytes | Hole], **weight_map: object) -> None:
    files[INDEX] = json.dumps({"weight_map": weight_map}).encode()


BAD_FOLDERS: list[tuple[str, Edit, str]] = [
    ("up", lambda f: index(f, t="../x.safetensors"), r"'\.\./x\.safetensors' is not a safetensors file of this model"),
    ("absolute", lambda f: index(f, t="/etc/x.safetensors"), r"'/etc/x\.safetensors' is not a safetensors file"),
    ("windows", lambda f: index(f, t="C:\\x.safetensors"), r"is not a safetensors file of this model"),
    ("pickle", lambda f: index(f, t="x.bin"), r"'x\.bin' is not a safetensors file of this model"),
    ("control", lambda f: index(f, t="\x1b.safetensors"), r"is not a safetensors file of this model"),
    ("not a name", lambda f: index(f, t=3), r"tensor 't': its file is '3', not a name"),
    ("a list for a map", lambda f: f.update({INDEX: b'{"weight_map": []}'}), r"key 'weight_map' is not an object"),
    ("missing shard", lambda f: index(f, t="other.safetensors"), r"'other\.safetensors' is named but missing"),
    ("index not JSON", lambda f: f.update({INDEX: b"{"}), r"index\.json: is not JSON: .* \(at byte 1\)"),
    ("deep", lambda f: f.update({INDEX: b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"}), r"is nested too deeply"),
    ("wide", lambda f: f.update({INDEX: b'{"a":[' + b"[]," * 1_000_001 + b"[]]}"}), r"has more than 1,000,000 objects"),
    (
        "100 MB config",
        lambda f: f.update({"config.json": Hole(b"{", 100_000_000)}),
        r"has 100,000,000 bytes, more than 4 MiB",
    ),
    ("100 MB index", lambda f: f.update({INDEX: Hole(b"{", 100_000_000)}), r"has 100,000,000 bytes, more than 32 MiB"),
    ("config a list", lambda f: f.update({"config.json": b"[]"}), r"config\.json: is not a JSON object"),
    ("config twice", lambda f: f.update({"config.json": b'{"a":1,"a":2}'}), r"key 'a' is there twice"),
    (
        "config latin-1",
        lambda f: f.update({"config.json": b'{"a":"\xe9"}'}),
        r"config\.json: is not UTF-8 \(at byte 6\)",
    ),
    ("no config", lambda f: f.pop("config.json"), r"has no config\.json"),
    (
        "huge number",
        lambda f: f.update({"config.json": b'{"a":' + b"9" * 5000 + b"}"}),
        r"config\.json: is not good JSON",
    ),
    ("two without index", lambda f: f.pop(INDEX), r"has 2 safetensors files but no model\.safetensors\.index\.json"),
]


@pytest.mark.parametrize(("edit", "expected"), [b[1:] for b in BAD_FOLDERS], ids=[b[0] for b in BAD_FOLDERS])
def test_a_bad_folder_is_refused(edit: Edit, expected: str, tmp_path: Path) -> None:
    files = checkpoint_files()
    edit(files)
    folder = write_folder(tmp_path / "bad", files)
    with pytest.raises(errors.BadModelFile, match=expected):
        read_model(str(folder))


@pytest.mark.parametrize("value", [None, "x", -1, 1e9, [], {}, True, 2**70, float("inf")])
@pytest.mark.parametrize(
    "field", ["hidden_size", "num_hidden_layers", "vocab_size", "architectures", "num_attention_heads"]
)
def test_a_configuration_of_wrong_types_is_refused_or_read(field: str, value: object, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**CONFIG, field: value}))
    try:
        facts = read_model(str(path))
    except errors.QuantplanError as error:
        assert str(error)
    else:
        assert facts.n_layer > 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", HubName(repo="org/name")),
        ("org/name@v1.0", HubName(repo="org/name", revision="v1.0")),
        ("org/name@refs/pr/3", HubName(repo="org/name", revision="refs/pr/3")),
        ("org/name:Q4_K_M", HubName(repo="org/name", quant="Q4_K_M")),
        ("org/name@main:Q4_K_M", HubName(repo="org/name", revision="main", quant="Q4_K_M")),
        ("org/name:Q4_K_M@main", HubName(repo="org/name", revision="main", quant="Q4_K_M")),
        ("org/name/file.gguf", HubName(repo="org/name", file="file.gguf")),
        ("org/name/B/x-00001-of-00002.gguf@a", HubName(repo="org/name", revision="a", file="B/x-00001-of-00002.gguf")),
        ("name", None),
        ("org/name:", None),
        ("org/name@", None),
        ("org/..", None),
        ("org/name/file.bin", None),
        ("org/na me", None),
        ("org/name@a@b", None),
    ],
)  # fmt: skip
def test_names_are_taken_apart(text: str, expected: HubName | None) -> None:
    assert hub_name(text) == expected


def test_addresses_of_the_hub_are_names() -> None:
    def name(path: str) -> HubName | None:
        return hub_name_of_url(f"https://huggingface.co{path}", endpoint="http://mirror")

    assert name("/org/name") == HubName(repo="org/name")
    assert name("/org/name/tree/v2") == HubName(repo="org/name", revision="v2")
    assert name("/org/name/blob/main/a/b.gguf") == HubName(repo="org/name", revision="main", file="a/b.gguf")
    assert name("/org/name/resolve/main/b.gguf?download=true") == HubName(
        repo="org/name", revision="main", file="b.gguf"
    )
    assert name("/org/name/resolve/main/config.json") == HubName(repo="org/name", revision="main")
    assert hub_name_of_url("https://example.com/org/name", endpoint="http://mirror") is None
    assert hub_name_of_url("http://mirror/org/name", endpoint="http://mirror") == HubName(repo="org/name")


FILES = (
    "README.md", "m-BF16-00001-of-00002.gguf", "m-BF16-00002-of-00002.gguf", "m-Q4_K_M.gguf", "m-UD-Q4_K_XL.gguf",
    "m-F16.gguf", "m-IQ4_XS.gguf", "mmproj-m-F16.gguf", "m-imatrix.gguf", "imatrix_unsloth.gguf", "m.Q8_0.gguf",
)  # fmt: skip


@pytest.mark.parametrize(
    ("quant", "expected"),
    [("q4_k_m", "m-Q4_K_M.gguf"), ("F16", "m-F16.gguf"), ("BF16", "m-BF16-00001-of-00002.gguf"),
     ("Q8_0", "m.Q8_0.gguf"),
     ("UD-Q4_K_XL", "m-UD-Q4_K_XL.gguf"), ("Q4_K_XL", "m-UD-Q4_K_XL.gguf"), ("IQ4_XS", "m-IQ4_XS.gguf")],
)  # fmt: skip
def test_a_quant_chooses_one_file(quant: str, expected: str) -> None:
    assert choose_gguf(FILES, model="org/m", quant=quant) == expected


def test_a_quant_that_no_file_or_several_have() -> None:
    for absent in ("Q4_K", "Q4", "XS", "Q5_K_M"):
        with pytest.raises(errors.HubFileNotFound):
            choose_gguf(FILES, model="org/m", quant=absent)
    with pytest.raises(errors.ChooseFile, match=r"'Q8_0' matches 2 models: a-Q8_0\.gguf, b-Q8_0\.gguf"):
        choose_gguf(("a-Q8_0.gguf", "b-Q8_0.gguf"), model="org/m", quant="Q8_0")
    assert model_files(FILES) == tuple(sorted(
        {"m-BF16-00001-of-00002.gguf",
         "m-Q4_K_M.gguf", "m-UD-Q4_K_XL.gguf", "m-F16.gguf", "m-IQ4_XS.gguf", "m.Q8_0.gguf"}
    ))  # fmt: skip
    assert quant_of("Qwen3-8B.gguf") is None
