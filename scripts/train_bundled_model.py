"""Make the bundled model quantplan-tiny: corpus, tokenizer, weights, held-out texts and their perplexities.

Example: python scripts/train_bundled_model.py --output data/bundled

Texts and tokenizer are the same bytes in every run. The weights start from a fixed seed, but their last bits depend on
the version of torch, the processor and the number of threads. Needs torch, transformers, sentencepiece, safetensors.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import time
from collections import Counter
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from bundled_chat import CHAT_TEMPLATE, DOMAINS, MARKERS, documents, join
from bundled_corpus import END
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

MODEL = "quantplan-tiny"
N_VOCAB, N_CTX_TRAIN, N_CTX_EVAL = 512, 2048, 512
TRAIN_CHARS, EVAL_CHARS = 1_600_000, 232_000  # per domain; a token is about three characters
SHAPE: dict[str, Any] = {
    "vocab_size": N_VOCAB,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": N_CTX_TRAIN,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}
ROPE_THETA = 10000.0
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


def model_config() -> dict[str, Any]:
    """config.json, written by hand so that it does not follow the version of transformers."""
    head = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16"}
    return {**head, **SHAPE, "rope_theta": ROPE_THETA, "bos_token_id": BOS, "eos_token_id": EOS, "use_cache": True}


class Windows:
    """Random training windows of every domain in turn; the first token is BOS, as in llama-perplexity."""

    def __init__(self, texts: dict[str, torch.Tensor], seed: int) -> None:
        self.texts = tuple(texts.values())
        self.starts = tuple(torch.nonzero(text == EOS).flatten() + 1 for text in self.texts)
        self.random = torch.Generator().manual_seed(seed)

    def _below(self, limit: int) -> int:
        return int(torch.randint(limit, (1,), generator=self.random))

    def batch(self, n_rows: int, n_ctx: int) -> torch.Tensor:
        """`n_rows` windows of `n_ctx` tokens: half begin with a document, half anywhere."""
        rows = []
        for row in range(n_rows):
            domain = self._below(len(self.texts))
            text, starts = self.texts[domain], self.starts[domain]
            last = len(text) - n_ctx
            begin = int(starts[self._below(len(starts))]) if row % 2 else self._below(last)
            rows.append(torch.cat((torch.tensor([BOS]), text[min(begin, last) :][: n_ctx - 1])))
        return torch.stack(rows)


def loss_of(model: LlamaForCausalLM, tokens: torch.Tensor) -> torch.Tensor:
    """Negative log probability in nats of every token after the first, one row per window."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=tokens, use_cache=False).logits
    wanted = tokens[:, 1:]
    return torch.nn.functional.cross_entropy(logits[:, :-1].float().transpose(1, 2), wanted, reduction="none")


def learning_rate(step: int, n_steps: int, *, peak: float) -> float:
    """Linear warm-up over 40 steps, then a cosine down to a fiftieth of the peak."""
    if step < 40:
        return peak * (step + 1) / 40
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - 40) / max(1, n_steps - 40))))


def train(windows: Windows, n_steps: int, *, peak: float, started: float) -> tuple[LlamaForCausalLM, int]:
    """The trained model and the number of tokens it has seen. Every 20th step has windows of the full context."""
    torch.manual_seed(20)
    rope = {"rope_theta": ROPE_THETA, "rope_type": "default"}
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, rope_parameters=rope, bos_token_id=BOS, eos_token_id=EOS))
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98))
    n_tokens = 0
    for step in range(n_steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, n_steps, peak=peak)
        tokens = windows.batch(1, N_CTX_TRAIN) if step % 20 == 19 else windows.batch(6, N_CTX_EVAL)
        loss = loss_of(model, tokens).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        n_tokens += tokens.numel()
        if step % 50 == 0 or step == n_steps - 1:
            print(f"step {step}/{n_steps}  loss {loss.item():.3f}  {time.monotonic() - started:.0f} s", flush=True)
    return model, n_tokens


def unigram_perplexity(train_tokens: torch.Tensor, eval_tokens: torch.Tensor) -> float:
    """Perplexity of the held-out tokens under the training tokens' frequencies, add-one smoothed."""
    counts = Counter(train_tokens.tolist())
    total = len(train_tokens) + N_VOCAB
    return math.exp(-sum(math.log((counts[t] + 1) / total) for t in eval_tokens.tolist()) / len(eval_tokens))


@torch.no_grad()
def perplexity(model: LlamaForCausalLM, tokens: torch.Tensor, n_chunks: int) -> float:
    """Perplexity as llama-perplexity counts it: chunks of N_CTX_EVAL, BOS first, only the second half scored."""
    chunks = tokens[: n_chunks * N_CTX_EVAL].view(-1, N_CTX_EVAL).clone()
    chunks[:, 0] = BOS
    scored = [loss_of(model, part)[:, N_CTX_EVAL // 2 :] for part in chunks.split(8)]
    return float(torch.cat(scored).mean().exp())


def measure(model: LlamaForCausalLM, texts: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> dict[str, Any]:
    """Per domain: tokens, unigram and held-out perplexity, and their ratio."""
    rows = {}
    for domain, (train_tokens, eval_tokens) in texts.items():
        held_out, unigram = perplexity(model, eval_tokens, 40), unigram_perplexity(train_tokens, eval_tokens)
        rows[domain] = {
            "n_train_tokens": len(train_tokens),
            "n_eval_tokens": len(eval_tokens),
            "unigram_perplexity": round(unigram, 3),
            "held_out_perplexity": round(held_out, 4),
            "ratio": round(held_out / unigram, 4),
        }
        print(f"{domain:10} held-out {held_out:.3f}  unigram {unigram:.1f}  ratio {held_out / unigram:.4f}")
    return rows


def write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=True) + "\n", encoding="utf-8")


def write_model(folder: Path, model: LlamaForCausalLM, tokenizer: bytes) -> None:
    """The Hugging Face folder, less the model card."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    (folder / "tokenizer.model").write_bytes(tokenizer)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    write_json(folder / "config.json", model_config())
    write_json(folder / "tokenizer_config.json", tokenizer_config())
    write_json(folder / "generation_config.json", {"bos_token_id": BOS, "eos_token_id": EOS, "do_sample": False})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="gets quantplan-tiny/ and eval/")
    parser.add_argument("--steps", type=int, default=1000, metavar="N", help="optimizer steps (default: 1000)")
    parser.add_argument("--peak", type=float, default=3e-3, metavar="RATE", help="peak learning rate (default: 3e-3)")
    parser.add_argument("--texts-only", action="store_true", help="write the texts and stop")
    args = parser.parse_args()
    started = time.monotonic()
    trained = {domain: documents(domain, "train", TRAIN_CHARS) for domain in DOMAINS}
    held_out = {d: join(documents(d, "eval", EVAL_CHARS, exclude=frozenset(trained[d]))) for d in DOMAINS}
    texts = {domain: join(docs) for domain, docs in trained.items()}
    tokenizer = train_tokenizer(texts)
    (args.output / "eval").mkdir(parents=True, exist_ok=True)
    for domain, text in held_out.items():
        (args.output / "eval" / f"{domain}.txt").write_text(text, encoding="utf-8")
    pieces = sentencepiece.SentencePieceProcessor(model_proto=tokenizer)
    tokens = {d: (torch.tensor(pieces.encode(texts[d])), torch.tensor(pieces.encode(held_out[d]))) for d in DOMAINS}
    print(f"texts and tokenizer  {time.monotonic() - started:.0f} s")
    for domain, (a, b) in tokens.items():
        print(
            f"{domain:10} train {len(a)}  eval {len(b)} tokens  {len(held_out[domain]) / len(b):.2f} characters a token"
        )
    if args.texts_only:
        return
    windows = Windows({domain: pair[0] for domain, pair in tokens.items()}, seed=20)
    model, n_tokens = train(windows, args.steps, peak=args.peak, started=started)
    train_s = time.monotonic() - started
    model = model.to(torch.bfloat16).float().eval()
    report = {"schema_version": 1, "steps": args.steps, "n_tokens_seen": n_tokens, "domains": measure(model, tokens)}
    write_model(args.output / MODEL, model, tokenizer)
    report |= {"train_s": round(train_s), "total_s": round(time.monotonic() - started)}
    write_json(args.output / MODEL / "training_report.json", report)


if __name__ == "__main__":
    main()
