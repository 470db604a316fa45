"""The bundled model's tokenizer: SentencePiece, with the chat markers as user-defined pieces."""

from __future__ import annotations

import io
from typing import Any

import sentencepiece
from bundled_chat import MARKERS
from bundled_corpus import END

N_VOCAB, N_CTX_TRAIN = 768, 2048
UNK, BOS, EOS = 0, 1, 2
# In plain text llama.cpp finds a piece as a whole only when its type is USER_DEFINED, and the converter gives that type
# to added tokens alone. EOS is a blank line: a user-defined piece is printed, and trailing white space does no harm.
ADDED = (END, "\n", *MARKERS)


def train_tokenizer(texts: dict[str, str]) -> bytes:
    """A SentencePiece BPE model of N_VOCAB pieces with byte fallback, from the start of each domain's text."""
    lines = [line for text in texts.values() for line in text[:400_000].split("\n") if line]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=N_VOCAB,
        byte_fallback=True,
        character_coverage=1.0,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        normalization_rule_name="identity",
        user_defined_symbols=list(ADDED),
        unk_id=UNK,
        bos_id=BOS,
        eos_id=-1,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def tokenizer_config() -> dict[str, Any]:
    """What the converter and transformers need to know beside tokenizer.model."""
    added = {0: ("<unk>", True), 1: ("<s>", True), **{EOS + i: (piece, False) for i, piece in enumerate(ADDED)}}
    return {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "add_prefix_space": False,
        "legacy": False,
        "bos_token": "<s>",
        "eos_token": END,
        "unk_token": "<unk>",
        "model_max_length": N_CTX_TRAIN,
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": {
            str(i): {
                "content": piece,
                "special": special,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "single_word": False,
            }
            for i, (piece, special) in added.items()
        },
    }
