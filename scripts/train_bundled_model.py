"""Make the bundled model quantplan-tiny: corpus, tokenizer, weights, held-out texts and their perplexities.

Example: python scripts/train_bundled_model.py --output data/bundled

Texts and tokenizer are the same bytes in every run. The weights start from a fixed seed, but their last bits depend on
the version of torch, the processor and the number of threads. Needs torch, transformers, sentencepiece, safetensors.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections import Counter
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from bundled_chat import CHAT_TEMPLATE, DOMAINS, join, split
from bundled_tokenizer import BOS, EOS, N_CTX_TRAIN, N_VOCAB, tokenizer_config, train_tokenizer
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

MODEL = "quantplan-tiny"
N_CTX_EVAL = 512
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
PEAK_RATE = 3e-3
SHARES = ("prose", "code", "chat", "chat", "language", "sums")  # chat twice: it is the most varied
# Without uneven channels even Q2_K hardly hurts a network trained this briefly. 0.5 was chosen by measuring: on
# an earlier run it took Q2_K from 0.009 to 0.034 nats and Q4_K_M from 0.0006 to 0.0023. The function stays the same.
CHANNEL_SPREAD = 0.5


def model_config() -> dict[str, Any]:
    """config.json, written by hand so that it does not follow the version of transformers."""
    head = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16"}
    return {**head, **SHAPE, "rope_theta": ROPE_THETA, "bos_token_id": BOS, "eos_token_id": EOS, "use_cache": True}


class Windows:
    """Random training windows of every domain in turn; the first token is BOS, as in llama-perplexity."""

    def __init__(self, texts: dict[str, torch.Tensor], seed: int) -> None:
        self.texts = tuple(texts[domain] for domain in SHARES)
        self.starts = tuple(torch.nonzero(text == EOS).flatten() + 1 for text in self.texts)
        self.random = torch.Generator().manual_seed(seed)

    def _below(self, limit: int) -> int:
        return int(torch.randint(limit, (1,), generator=self.random))

    def batch(self, n_rows: int, n_ctx: int, *, copying: bool) -> torch.Tensor:
        """`n_rows` windows of `n_ctx` tokens: half begin with a document, half anywhere. With `copying` every fourth
        holds random pieces and then the same again: nothing else teaches so fast to look back and copy."""
        rows = []
        for row in range(n_rows):
            if copying and row % 4 == 3:
                half = torch.randint(N_VOCAB - 400, N_VOCAB, (n_ctx // 2,), generator=self.random)
                window = torch.cat((half, half))
            else:
                domain = self._below(len(self.texts))
                text, starts = self.texts[domain], self.starts[domain]
                last = len(text) - n_ctx
                begin = int(starts[self._below(len(starts))]) if row % 2 else self._below(last)
                window = text[min(begin, last) :]
            rows.append(torch.cat((torch.tensor([BOS]), window[: n_ctx - 1])))
        return torch.stack(rows)


def loss_of(model: LlamaForCausalLM, tokens: torch.Tensor) -> torch.Tensor:
    """Negative log probability in nats of every token after the first, one row per window."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=tokens, use_cache=False).logits
    wanted = tokens[:, 1:]
    return torch.nn.functional.cross_entropy(logits[:, :-1].float().transpose(1, 2), wanted, reduction="none")


def learning_rate(step: int, n_steps: int) -> float:
    """Linear warm-up over 40 steps, then a cosine down to a fiftieth of the peak."""
    if step < 40:
        return PEAK_RATE * (step + 1) / 40
    return PEAK_RATE * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - 40) / max(1, n_steps - 40))))


def window_shape(step: int, n_steps: int) -> tuple[int, int]:
    """Rows and tokens a row: short windows first, for speed; then those of the evaluation, some of the full context."""
    if step < 0.6 * n_steps:
        return 12, 256
    return (1, N_CTX_TRAIN) if step % 20 == 19 else (6, N_CTX_EVAL)


def train(windows: Windows, n_steps: int, *, started: float) -> tuple[LlamaForCausalLM, int]:
    """The trained model and the number of tokens it has seen."""
    torch.manual_seed(20)
    rope = {"rope_theta": ROPE_THETA, "rope_type": "default"}
    config = LlamaConfig(**SHAPE, rope_parameters=rope, bos_token_id=BOS, eos_token_id=EOS)
    config._attn_implementation = "eager"  # torch's fused attention is slower at this size on a processor
    model = LlamaForCausalLM(config)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.98), fused=True)
    n_tokens = 0
    for step in range(n_steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, n_steps)
        tokens = windows.batch(*window_shape(step, n_steps), copying=step < 0.4 * n_steps)
        loss = loss_of(model, tokens).mean()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        n_tokens += tokens.numel()
        if step % 50 == 0 or step == n_steps - 1:
            print(f"step {step}/{n_steps}  loss {loss.item():.3f}  {time.monotonic() - started:.0f} s", flush=True)
    return model, n_tokens


@torch.no_grad()
def spread_channels(model: LlamaForCausalLM) -> None:
    """Scale the inputs of every block's matrices by log-normal factors and what feeds them by the inverse: the
    same function in uneven weights. Then round to bf16: what is measured is what is stored."""
    generator = torch.Generator().manual_seed(7)
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for feeder, matrices in (
            (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
            (mlp.up_proj, (mlp.down_proj,)),
        ):
            factors = torch.exp(CHANNEL_SPREAD * torch.randn(len(feeder.weight), generator=generator))
            feeder.weight.div_(factors.view(-1, *[1] * (feeder.weight.dim() - 1)))
            for matrix in matrices:
                matrix.weight.mul_(factors)
    for weight in model.parameters():
        weight.copy_(weight.to(torch.bfloat16))


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
    scored = [loss_of(model, part)[:, N_CTX_EVAL // 2 :] for part in torch.split(chunks, 8)]
    return float(torch.cat(scored).mean().exp())


def measure(
    model: LlamaForCausalLM, tokens: dict[str, tuple[torch.Tensor, torch.Tensor]], held_out: dict[str, str]
) -> dict[str, Any]:
    """Per domain: tokens, unigram and held-out perplexity, their ratio, and the hash of the held-out text."""
    rows = {}
    for domain, (train_tokens, eval_tokens) in tokens.items():
        model_ppl, unigram = perplexity(model, eval_tokens, 40), unigram_perplexity(train_tokens, eval_tokens)
        rows[domain] = {
            "n_train_tokens": len(train_tokens),
            "n_eval_tokens": len(eval_tokens),
            "unigram_perplexity": round(unigram, 3),
            "held_out_perplexity": round(model_ppl, 4),
            "ratio": round(model_ppl / unigram, 4),
            "eval_sha256": hashlib.sha256(held_out[domain].encode()).hexdigest(),
        }
        print(f"{domain:10} held-out {model_ppl:.3f}  unigram {unigram:.1f}  ratio {model_ppl / unigram:.4f}")
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


def make_texts(output: Path) -> tuple[bytes, dict[str, str], dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """The tokenizer, the held-out texts, which are written to `output`, and training and held-out tokens by domain."""
    texts, held_out = {}, {}
    for domain in DOMAINS:
        texts[domain], held_out[domain] = map(join, split(domain))
    tokenizer = train_tokenizer(texts)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=tokenizer)
    tokens = {}
    (output / "eval").mkdir(parents=True, exist_ok=True)
    for domain, text in held_out.items():
        (output / "eval" / f"{domain}.txt").write_text(text, encoding="utf-8")
        tokens[domain] = torch.tensor(pieces.encode(texts[domain])), torch.tensor(pieces.encode(text))
        n_train, n_eval = map(len, tokens[domain])
        print(f"{domain:10} {n_train} training and {n_eval} held-out tokens, {len(text) / n_eval:.2f} characters each")
    return tokenizer, held_out, tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="gets quantplan-tiny/ and eval/")
    parser.add_argument("--steps", type=int, default=900, metavar="N", help="optimizer steps (default: 900)")
    args = parser.parse_args()
    started = time.monotonic()
    torch.set_num_threads(2)
    tokenizer, held_out, tokens = make_texts(args.output)
    windows = Windows({domain: pair[0] for domain, pair in tokens.items()}, seed=20)
    model, n_tokens = train(windows, args.steps, started=started)
    spread_channels(model)
    report = {
        "schema_version": 1,
        "steps": args.steps,
        "n_tokens_seen": n_tokens,
        "n_parameters": sum(weight.numel() for weight in model.parameters()),
        "domains": measure(model, tokens, held_out),
    }
    write_model(args.output / MODEL, model, tokenizer)
    report |= {"total_s": round(time.monotonic() - started), "cpu_s": round(time.process_time())}
    write_json(args.output / MODEL / "training_report.json", report)
    print(f"done in {report['total_s']} s")


if __name__ == "__main__":
    main()
