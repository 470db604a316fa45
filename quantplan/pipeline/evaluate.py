"""Scoring a text with llama-perplexity, whose exit status means nothing: only a whole file of scores counts."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quantplan.errors import QuantplanError, ToolFailed
from quantplan.llama import commands, output
from quantplan.llama.process import OnText, Runner
from quantplan.llama.types import Completed
from quantplan.pipeline import logits
from quantplan.pipeline.logits import BadLogits
from quantplan.pipeline.steps import Tell

ATTEMPTS = 3
PROGRESS_S = 5.0
BEGUN_BYTES = 12  # tools/perplexity/perplexity.cpp, perplexity(): written before the text is tokenized
# The tool prints 4 decimals; our values carry the 16-bit steps of the file (below 2.5e-4 nats, mean error far less).
PRINTED_ROUNDING = 6e-5
STEP_TOLERANCE = 2e-4

_TOO_SHORT = re.compile(r"you need at least \d+ tokens")
_TOKENIZES_TO = re.compile(r"tokenizes to only (\d+) tokens")


class TextTooShort(QuantplanError):
    """A text with fewer tokens than two context windows."""

    def __init__(self, *, text: str, n_tokens: int | None, need: int) -> None:
        has = f"{n_tokens} tokens" if n_tokens is not None else "too few tokens"
        super().__init__(f"{text}: {has}, at least {need} are needed")
        self.text, self.n_tokens, self.need = text, n_tokens, need


class PrintedMeanDiffers(QuantplanError):
    """The tool's own perplexity and ours over its file do not agree: something was lost or mixed up."""

    def __init__(self, *, corpus: str, printed: float, ours: float) -> None:
        super().__init__(f"{corpus}: llama-perplexity printed {printed}, its own file gives {ours:.5f}")
        self.corpus, self.printed, self.ours = corpus, printed, ours


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """A named text."""

    name: str
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A file of log-probabilities and how it was made; `printed` is None where the tool lost its last line."""

    corpus: Corpus
    logits: Path
    completed: Completed
    printed: output.PrintedPerplexity | None


def score(
    program: Sequence[str], model: Path, corpus: Corpus, target: Path, settings: commands.EvalSettings,
    *, run: Runner, tell: Tell, label: str,
) -> Scored:  # fmt: skip
    """Writes the log-probabilities of a text. Crashes and files cut short are tried again, three times in all.

    Threads wait passively: spinning ones took ten times as long on 2 busy cores (23.7 s against 2.5 s).

    Raises TextTooShort, BadLogits, or ToolFailed when the last attempt failed too.
    """
    step = f"evaluate {label} on {corpus.name}"
    for attempt in range(1, ATTEMPTS + 1):
        target.unlink(missing_ok=True)
        try:
            argv = commands.save_logits(program, model, corpus.path, target, settings)
            completed = run(
                argv,
                step=step,
                on_text=_chunks(step, settings.n_chunks, tell),
                extra_env={"OMP_WAIT_POLICY": "passive"},
            )
            _refuse_short_text(corpus, completed, target, need=2 * settings.n_ctx)
            logits.read_header(target)
            printed = output.parse_perplexity((*completed.stdout, *completed.stderr))
            return Scored(corpus=corpus, logits=target, completed=completed, printed=printed)
        except (ToolFailed, BadLogits) as error:
            target.unlink(missing_ok=True)
            if attempt == ATTEMPTS:
                raise
            tell(step, f"attempt {attempt} gave nothing usable ({error}), trying again")
    raise AssertionError("unreachable")


def _refuse_short_text(corpus: Corpus, completed: Completed, target: Path, *, need: int) -> None:
    """The tool says so at exit status 0, and may lose the sentence; it always leaves magic and n_ctx alone."""
    said = "\n".join((*completed.stdout, *completed.stderr))
    has = _TOKENIZES_TO.search(said)
    begun = target.is_file() and target.stat().st_size == BEGUN_BYTES
    if _TOO_SHORT.search(said) or begun:
        raise TextTooShort(text=corpus.path.name, n_tokens=int(has[1]) if has else None, need=need)


def _chunks(step: str, n_chunks: int, tell: Tell) -> OnText:
    """Tells that the step runs, and every five seconds how far it is."""
    tell(step, "running")
    told = [time.monotonic()]

    def on_text(stream: str, text: str) -> None:
        done = output.perplexity_progress(text) if stream == "stdout" else None
        if done is not None and time.monotonic() - told[0] >= PROGRESS_S:
            told[0] = time.monotonic()
            tell(step, f"{done} of {n_chunks} chunks")

    return on_text


def check_printed(scored: Scored, *, mean_nll: float, n_clipped: int) -> None:
    """Our perplexity of the file against the tool's printed one, where it was printed.

    The file clips log-probabilities 16 nats under the largest, so with clipped targets the two may differ.
    Raises PrintedMeanDiffers.
    """
    if scored.printed is None or n_clipped or not math.isfinite(scored.printed.ppl):
        return
    ours = math.exp(mean_nll)
    if abs(ours - scored.printed.ppl) > PRINTED_ROUNDING + STEP_TOLERANCE * ours:
        raise PrintedMeanDiffers(corpus=scored.corpus.name, printed=scored.printed.ppl, ours=ours)
