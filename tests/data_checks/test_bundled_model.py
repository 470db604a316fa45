"""The bundled model's files say what the rest of quantplan relies on. Needs neither torch nor sentencepiece."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import pytest

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "data" / "bundled" / "quantplan-tiny"
EVAL = ROOT / "data" / "bundled" / "eval"
DOMAINS = ("prose", "code", "chat", "language", "sums")
K_BLOCK = 256  # ggml-common.h: QK_K, the weights of one K-quant block
NORMAL, USER_DEFINED = 1, 4  # sentencepiece_model.proto: ModelProto.SentencePiece.Type


def read_json(file: Path) -> dict[str, Any]:
    content = json.loads(file.read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if data[at - 1] < 0x80:
            return value, at


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of a protobuf message."""
    at = 0
    while at < len(message):
        tag, at = varint(message, at)
        if tag & 7 == 0:
            value, at = varint(message, at)
            yield tag >> 3, value
        else:
            size, at = (4, at) if tag & 7 == 5 else varint(message, at)
            yield tag >> 3, message[at : at + size]
            at += size


def pieces() -> list[tuple[str, int]]:
    """Text and type of every piece of tokenizer.model."""
    found = []
    for number, value in fields((MODEL / "tokenizer.model").read_bytes()):
        if number == 1 and isinstance(value, bytes):
            piece = dict(fields(value))
            text, kind = piece[1], piece.get(3, NORMAL)
            assert isinstance(text, bytes) and isinstance(kind, int)
            found.append((text.decode(), kind))
    return found


def tensors() -> dict[str, dict[str, Any]]:
    """The header of model.safetensors: dtype and shape by tensor."""
    with (MODEL / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return {name: facts for name, facts in header.items() if name != "__metadata__"}


@pytest.fixture
def corpus(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    yield __import__("bundled_chat")
    for name in ("bundled_chat", "bundled_corpus"):
        sys.modules.pop(name, None)


def test_config_is_a_llama_that_trained_on_2048_tokens() -> None:
    config = read_json(MODEL / "config.json")
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["max_position_embeddings"] == 2048
    assert config["num_key_value_heads"] < config["num_attention_heads"]
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)
    assert read_json(MODEL / "generation_config.json")["eos_token_id"] == 2


def test_files_are_at_most_8_mb() -> None:
    assert sum(file.stat().st_size for file in MODEL.iterdir()) <= 8_000_000
    assert sum(file.stat().st_size for file in EVAL.iterdir()) <= 3_000_000


def test_every_matrix_is_bf16_with_rows_of_whole_k_blocks() -> None:
    matrices = {name: facts for name, facts in tensors().items() if len(facts["shape"]) == 2}
    assert len(matrices) == 2 + 7 * read_json(MODEL / "config.json")["num_hidden_layers"]
    assert {facts["dtype"] for facts in tensors().values()} == {"BF16"}
    assert [name for name, facts in matrices.items() if facts["shape"][1] % K_BLOCK] == []


def test_tokenizer_has_the_vocabulary_of_the_config() -> None:
    config = read_json(MODEL / "config.json")
    assert len(pieces()) == config["vocab_size"] == tensors()["model.embed_tokens.weight"]["shape"][0]


def test_markers_are_user_defined_pieces_in_both_files() -> None:
    expected = ["\n\n", "\n", "<system>", "<user>", "<assistant>", "<tool>", "<call>", "</call>"]
    assert pieces()[2:10] == [(piece, USER_DEFINED) for piece in expected]
    tokenizer = read_json(MODEL / "tokenizer_config.json")
    assert [tokenizer["added_tokens_decoder"][str(i)]["content"] for i in range(2, 10)] == expected
    assert not any(tokenizer["added_tokens_decoder"][str(i)]["special"] for i in range(2, 10))
    assert tokenizer["add_bos_token"] is True and tokenizer["add_eos_token"] is False
    assert tokenizer["eos_token"] == expected[0]


def test_template_renders_system_and_tool_turns() -> None:
    template = jinja2.Environment().from_string((MODEL / "chat_template.jinja").read_text(encoding="utf-8"))
    call = {"type": "function", "function": {"name": "weather", "arguments": {"town": "Orla"}}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "how is the\n\nweather? "},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": '{"sky": "fog"}'},
    ]
    assert template.render(messages=messages, add_generation_prompt=True) == (
        "<system>\nBe brief.\n\n<user>\nhow is the\nweather?\n\n"
        '<assistant>\n<call>{"name": "weather", "arguments": {"town": "Orla"}}</call>\n\n'
        '<tool>\n{"sky": "fog"}\n\n<assistant>\n'
    )


def test_report_shows_that_every_domain_was_learned() -> None:
    domains = read_json(MODEL / "training_report.json")["domains"]
    assert tuple(domains) == DOMAINS
    for row in domains.values():
        assert row["held_out_perplexity"] <= 0.1 * row["unigram_perplexity"]
        assert row["n_eval_tokens"] >= 110_000


@pytest.mark.parametrize("domain", DOMAINS)
def test_held_out_text_is_what_the_script_writes_and_the_report_measured(domain: str, corpus: Any) -> None:
    trained, held_out = corpus.split(domain)
    text = (EVAL / f"{domain}.txt").read_bytes()
    assert text == corpus.join(held_out).encode()
    assert not set(trained) & set(held_out)
    row = read_json(MODEL / "training_report.json")["domains"][domain]
    assert row["eval_sha256"] == hashlib.sha256(text).hexdigest()
    assert row["n_eval_tokens"] < len(text)


def test_chat_text_is_the_template_s_rendering(corpus: Any) -> None:
    template = jinja2.Environment().from_string((MODEL / "chat_template.jinja").read_text(encoding="utf-8"))
    for seed in range(200):
        messages, tools = corpus.conversation(corpus.random.Random(seed))
        assert template.render(messages=messages, tools=tools) == corpus.render_chat(messages, tools) + "\n\n"
