"""Texts cut for a sequential test, and chat text in another model's template."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantplan.errors import BadText
from quantplan.pipeline import chat, texts

LINES = "".join(f"line {i} of a text that is cut in blocks\n" for i in range(4_000))


def test_slices_hold_the_text_once_and_in_whole_lines() -> None:
    n_tokens = len(LINES) // 4
    found = texts.cut("prose", LINES, n_tokens=n_tokens, n_ctx=512, looks=(20, 40, 80))
    assert [part.n_chunks for part in found] == [20, 20, 40]
    lines = "".join(part.text for part in found).splitlines()
    assert len(set(lines)) == len(lines)
    assert set(lines) <= set(LINES.splitlines())
    for part in found[:2]:
        assert len(part.text) / 4 / 512 >= part.n_chunks


def test_the_cut_does_not_depend_on_where_blocks_stand() -> None:
    """Blocks change places in the file: the slices are the same."""
    blocks = [f"{i:02d} " + "x" * 8_200 + "\n" for i in range(30)]
    one = texts.cut("a", "".join(blocks), n_tokens=61_500, n_ctx=512, looks=(20, 40))
    other = texts.cut("a", "".join(reversed(blocks)), n_tokens=61_500, n_ctx=512, looks=(20, 40))
    assert [part.sha256 for part in one] == [part.sha256 for part in other]


def test_a_text_that_ends_early_gives_fewer_slices() -> None:
    short = LINES[:60_000]
    found = texts.cut("prose", short, n_tokens=15_000, n_ctx=512, looks=(20, 40, 80))
    assert len(found) == 2  # 29 windows


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("Grüße".encode("latin-1"), "is not UTF-8 .byte 2"),
        ("text".encode("utf-16"), "is not UTF-8"),
        ("text".encode("utf-16-le"), "zero bytes"),
        (b"  \n", "is empty"),
    ],
)
def test_texts_in_another_encoding_are_refused(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "t.txt").write_bytes(content)
    with pytest.raises(BadText, match=words):
        texts.read_text(tmp_path / "t.txt")
    with pytest.raises(BadText, match="No such file"):
        texts.read_text(tmp_path / "none.txt")


CHAT = "<system>\nBe kind.\n\n<user>\nhi\n\n<assistant>\nhello\n\n<tool>\n{}\n\n<assistant>\ndone\n"


def test_conversations_are_read_back() -> None:
    (turns,) = chat.conversations(CHAT)
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "user", "assistant"]


def test_chat_goes_through_the_models_own_template() -> None:
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    shown = chat.render(template, CHAT, bos="", eos="")
    assert shown.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nhi<|im_end|>")


def test_a_template_that_refuses_system_turns_gets_none() -> None:
    template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    )
    assert chat.render(template, CHAT, bos="", eos="").startswith("[user]hi")


@pytest.mark.parametrize("template", ["{{ raise_exception('never') }}", "{% for %}", "{{ messages[0].x.y }}"])
def test_a_template_that_cannot_be_used_says_why(template: str) -> None:
    with pytest.raises(chat.TemplateFailed, match="does not take plain conversations"):
        chat.render(template, CHAT, bos="", eos="")


def test_templates_run_in_a_sandbox() -> None:
    with pytest.raises(chat.TemplateFailed):
        chat.render("{{ ''.__class__.__mro__[1].__subclasses__() }}", CHAT, bos="", eos="")


def test_a_template_that_never_ends_is_ended() -> None:
    """It is a stranger's program: it gets seconds and some memory, in a process of its own."""
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{{ a * b }}{% endfor %}{% endfor %}"
    for template in (endless, "{{ 'x' * 9999999999 }}"):
        with pytest.raises(chat.TemplateFailed, match="does not take plain conversations"):
            chat.render(template, CHAT, bos="", eos="")
