"""The gate with the real tools on the bundled model: what it must catch, and every trap of the engine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantplan.artifact.results import Verdict
from quantplan.errors import DamagedWeights, NotComparable, QuantplanError, ToolFailed
from quantplan.llama import commands
from quantplan.llama.process import run_tool
from quantplan.llama.toolchain import converter_script
from quantplan.llama.types import Completed
from quantplan.model.gguf_header import read_gguf_header
from quantplan.pipeline import logits
from quantplan.pipeline.evaluate import Corpus, TextTooShort
from quantplan.pipeline.judge import JudgeRequest, judge_file
from quantplan.pipeline.logits import BadLogits
from quantplan.pipeline.policy import Limit, Policy, load_policy
from quantplan.pipeline.reference import make_reference
from quantplan.places import data_file

pytestmark = [pytest.mark.tools, pytest.mark.build]
EVAL = data_file("bundled", "eval")
STANDARD = load_policy("standard")
# llama-quantize's own layout of a Q4_K block: two half scales first (ggml-common.h: block_q4_K)
Q4_K_BLOCK = 144


def quiet(step: str, what: str) -> None:
    """Nobody listens."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, toolchain: Any) -> dict[str, Path]:
    """The bundled model in 16 bits and at four presets."""
    folder = tmp_path_factory.mktemp("models")
    converter = converter_script(toolchain)
    assert converter is not None
    source = data_file("bundled", "quantplan-tiny")
    found = {"BF16": make_reference(source, folder / "tiny-BF16.gguf", converter=converter, run=run_tool, tell=quiet)}
    for quant in ("Q8_0", "Q4_K_M", "Q2_K", "F16"):
        found[quant] = folder / f"tiny-{quant}.gguf"
        program = toolchain.programs["llama-quantize"]
        run_tool(commands.quantize(program, found["BF16"], found[quant], quant, n_threads=2), step="quantize")
    return found


@pytest.fixture
def ask(models: dict[str, Path], toolchain: Any, tmp_path: Path) -> Any:
    """A request on two texts; what the limits are relative to is made already."""

    def make(artifact: Path, *, texts: Sequence[str] = ("prose", "sums"), policy: Policy = STANDARD,
             **how: Any) -> JudgeRequest:  # fmt: skip
        values: dict[str, Any] = {
            "artifact": artifact, "reference": models["BF16"], "policy": policy, "tools": toolchain,
            "corpora": tuple(Corpus(name=name, path=EVAL / f"{name}.txt") for name in texts),
            "settings": commands.EvalSettings(n_threads=2), "work": tmp_path / "work",
            "known": {quant: models[quant] for quant in ("Q8_0", "Q4_K_M", "Q2_K", "F16")}, **how,
        }  # fmt: skip
        return JudgeRequest(**values)

    return make


def damaged(model: Path, target: Path, tensor: str, *, share: float, factor: float) -> Path:
    """A copy in which some blocks' scales of one Q4_K tensor are multiplied."""
    header = read_gguf_header(model)
    found = next(one for one in header.tensors if one.name == tensor)
    assert found.type_name == "Q4_K"
    raw = bytearray(model.read_bytes())
    start, n = header.data_offset + found.offset, found.n_bytes // Q4_K_BLOCK
    for i in np.random.default_rng(7).choice(n, max(1, round(share * n)), replace=False):
        at = start + int(i) * Q4_K_BLOCK
        scales = np.frombuffer(bytes(raw[at : at + 4]), np.float16) * np.float16(factor)
        raw[at : at + 4] = scales.astype(np.float16).tobytes()
    target.write_bytes(bytes(raw))
    return target


def test_q4_k_m_and_q8_0_pass_standard(ask: Any, models: dict[str, Path]) -> None:
    for quant in ("Q4_K_M", "Q8_0"):
        judged = judge_file(ask(models[quant]), tell=quiet).judgement
        assert judged.verdict is Verdict.PASS, judged.reason
        assert judged.n_tokens == 2 * 20 * 255  # ten times fewer than the budget's 200 chunks a text
        names = {(metric.name, metric.corpus) for metric in judged.metrics if metric.verdict is Verdict.PASS}
        assert {("kld_mean", "prose"), ("kld_99", "sums"), ("ppl_ratio", "prose"), ("same_top", "sums")} <= names
        floor = [metric.value for metric in judged.metrics if metric.name == "kld_mean_floor"]
        assert len(floor) == 2
        assert all(value is not None and value > 0 for value in floor)  # F16, since a micro-batch changed no bit


def test_nothing_of_the_measurement_stays(ask: Any, models: dict[str, Path], tmp_path: Path) -> None:
    judge_file(ask(models["Q2_K"], texts=("prose",), settings=SHORT), tell=quiet)
    assert [path for path in (tmp_path / "work").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("label", ["Q2_K", "Q4_K_M"])
def test_q2_k_fails_under_any_label(ask: Any, models: dict[str, Path], label: str) -> None:
    judged = judge_file(ask(models["Q2_K"], texts=("prose",), label=label), tell=quiet).judgement
    assert judged.verdict is Verdict.FAIL
    assert judged.n_tokens == 20 * 255
    ratio = next(metric for metric in judged.metrics if metric.name == "kld_of_label")
    assert ratio.verdict is (Verdict.PASS if label == "Q2_K" else Verdict.FAIL)


def test_a_false_label_alone_is_told_by_measurement(ask: Any, models: dict[str, Path]) -> None:
    """Under limits that Q2_K keeps, it still is not the Q4_K_M that it says it is."""
    wide = replace(STANDARD, quality={"kld_mean": Limit(absolute=1.0), "kld_of_label": Limit(absolute=1.3)})
    judged = judge_file(ask(models["Q2_K"], texts=("prose",), label="Q4_K_M", policy=wide), tell=quiet).judgement
    assert judged.verdict is Verdict.FAIL
    assert judged.reason.startswith("kld_of_label is outside its limit on prose: 2")


@pytest.mark.parametrize("tensor", ["blk.0.ffn_gate.weight", "blk.0.attn_q.weight", "blk.3.ffn_up.weight"])
def test_two_percent_of_a_tensors_blocks_are_caught(
    ask: Any, models: dict[str, Path], tmp_path: Path, tensor: str
) -> None:
    """Scales × 4 in 2 % of the blocks; the file says that it is Q4_K_M, and its weights are finite."""
    broken = damaged(models["Q4_K_M"], tmp_path / "tiny-Q4_K_M.gguf", tensor, share=0.02, factor=4)
    judged = judge_file(ask(broken), tell=quiet).judgement
    assert judged.verdict is Verdict.FAIL, judged.reason


def test_smaller_damage_is_told_as_not_detectable(ask: Any, models: dict[str, Path], tmp_path: Path) -> None:
    broken = damaged(models["Q4_K_M"], tmp_path / "m.gguf", "blk.0.ffn_up.weight", share=0.001, factor=1.02)
    judged = judge_file(ask(broken), tell=quiet).judgement
    assert judged.verdict is Verdict.PASS
    assert [finding.rule for finding in judged.findings] == ["gate/not-detectable"]


def test_three_full_runs_say_the_same(ask: Any, models: dict[str, Path]) -> None:
    found = set()
    for _ in range(3):
        judged = judge_file(ask(models["Q4_K_M"], texts=("code",), policy=ALONE), tell=quiet).judgement
        found.add((judged.verdict, judged.reason, judged.n_tokens))
    assert len(found) == 1


def test_our_mean_kld_is_the_tools_own(ask: Any, models: dict[str, Path], toolchain: Any, tmp_path: Path) -> None:
    """llama-perplexity --kl-divergence prints the mean with six decimals, where it does not lose the table."""
    program, settings = toolchain.programs["llama-perplexity"], commands.EvalSettings(n_threads=2, n_chunks=20)
    text = EVAL / "sums.txt"
    for quant in ("BF16", "Q2_K"):
        run_tool(commands.save_logits(program, models[quant], text, tmp_path / quant, settings), step="logits")
    ours = float(logits.compare(tmp_path / "BF16", tmp_path / "Q2_K").kld.mean())
    for _ in range(8):
        argv = commands.kl_divergence(program, models["Q2_K"], tmp_path / "BF16", settings)
        said = "\n".join(run_tool(argv, step="kl divergence").stdout)
        if "Mean    KLD:" in said:
            printed = float(said.split("Mean    KLD:")[1].split()[0])
            assert ours == pytest.approx(printed, rel=1e-3, abs=2e-6)
            return
    pytest.fail("the tool lost its table eight times")


# --- what cannot be measured is never a verdict ---


class Twisted:
    """The real tools, with something wrong: `shell` wraps the evaluator's command line."""

    def __init__(self, shell: str) -> None:
        self.shell = shell

    def __call__(self, argv: Sequence[str], *, step: str, **rest: Any) -> Completed:
        if step.startswith("evaluate"):
            argv = ("bash", "-c", self.shell, "bash", *argv)
        return run_tool(argv, step=step, **rest)


# The file of 20 chunks has 2 MB; with the signal ignored a full disk and this limit look the same to the tool.
FULL_DISK = "trap '' XFSZ; ulimit -f 1000; exec \"$@\""
SHORT = commands.EvalSettings(n_threads=2, n_ctx=128, n_batch=128, n_ubatch=128)  # small windows: quick
ALONE = replace(STANDARD, quality={"kld_mean": Limit(absolute=0.01)})  # relative to nothing


@pytest.mark.parametrize(
    ("shell", "kind", "words"),
    [
        (FULL_DISK, BadLogits, "were to be written"),
        ('"$@"; f="${@: -1}"; truncate -s -1 "$f"', BadLogits, "were to be written"),
        ('"$@"; f="${@: -1}"; rm "$f"', BadLogits, "No such file"),
        ('"$@"; f="${@: -1}"; : > "$f"', BadLogits, "no log-probabilities"),
        ('"$@" & p=$!; kill -SEGV $p; wait $p; exit 139', ToolFailed, "status 139"),
        ('"$@" & p=$!; kill -ABRT $p; wait $p; exit 134', ToolFailed, "status 134"),
    ],
)
def test_traps_are_errors_with_their_cause(
    ask: Any, models: dict[str, Path], shell: str, kind: type[QuantplanError], words: str
) -> None:
    with pytest.raises(kind, match=words):
        judge_file(ask(models["Q8_0"], texts=("prose",), settings=SHORT), tell=quiet, run=Twisted(shell))


def test_a_real_full_disk(ask: Any, models: dict[str, Path], tmp_path: Path) -> None:
    """A tmpfs of 4 MiB, where this may be mounted: the tool prints a normal estimate and exits 0."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = run_tool(("mount", "-t", "tmpfs", "-o", "size=4m", "none", str(small)), step="mount", check=False)
    if mounted.returncode:
        small = Path("/dev/full")  # writes fail here, too
        with pytest.raises(QuantplanError):
            judge_file(ask(models["Q8_0"], texts=("prose",), settings=SHORT), tell=quiet, run=Twisted(FULL_DISK))
        return
    try:
        request = ask(models["Q8_0"], texts=("prose",), work=small)
        with pytest.raises(QuantplanError, match=r"disk space needed"):
            judge_file(request, tell=quiet)  # the size is predicted
        assert list(small.rglob("*.logits")) == []
    finally:
        run_tool(("umount", str(small)), step="umount", check=False)


def test_a_lost_last_line_costs_nothing(ask: Any, models: dict[str, Path]) -> None:
    """The verdict comes from the whole file of scores; nothing is read off the lines that may be lost."""
    silent = Twisted('"$@" > /dev/null 2>&1')
    told = judge_file(ask(models["Q8_0"], texts=("prose",), policy=ALONE), tell=quiet, run=silent)
    assert all(scored.printed is None for _, scored in told.runs)
    assert told.judgement.verdict is Verdict.PASS


def test_not_a_number_is_refused_before_and_after(
    ask: Any, models: dict[str, Path], tmp_path: Path, toolchain: Any
) -> None:
    broken = damaged(models["Q4_K_M"], tmp_path / "nan.gguf", "blk.0.ffn_up.weight", share=0.01, factor=np.inf)
    with pytest.raises(DamagedWeights, match=r"blk\.0\.ffn_up\.weight"):
        judge_file(ask(broken), tell=quiet)
    # In a quantized model the engine swallows it while it quantizes the activations; 16-bit kernels pass it on.
    nan = tmp_path / "norm.gguf"
    header = read_gguf_header(models["BF16"])
    norm = next(one for one in header.tensors if one.name == "output_norm.weight")
    raw = bytearray(models["BF16"].read_bytes())
    at = header.data_offset + norm.offset
    raw[at : at + 4] = np.float32(np.nan).tobytes()
    nan.write_bytes(bytes(raw))
    with pytest.raises(DamagedWeights, match=r"output_norm\.weight"):
        judge_file(ask(nan), tell=quiet)
    program, settings = toolchain.programs["llama-perplexity"], commands.EvalSettings(n_threads=2, n_chunks=2)
    for name, model in (("good", models["BF16"]), ("bad", nan)):
        argv = commands.save_logits(program, model, EVAL / "prose.txt", tmp_path / name, settings)
        assert run_tool(argv, step="logits", check=False).returncode == 0  # it says nothing
    with pytest.raises(BadLogits, match="not finite"):
        logits.compare(tmp_path / "good", tmp_path / "bad")
    with pytest.raises(BadLogits, match="the reference's weights"):
        logits.compare(tmp_path / "bad", tmp_path / "good")


def test_a_short_text_says_how_much_is_needed(ask: Any, models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("There was once a hammer.\n")
    short = (Corpus(name="short", path=tmp_path / "short.txt"),)
    with pytest.raises(TextTooShort, match="at least 1024 are needed"):
        judge_file(ask(models["Q8_0"], corpora=short), tell=quiet)
    (tmp_path / "few.txt").write_text((EVAL / "prose.txt").read_text()[:8_000])
    few = (Corpus(name="few", path=tmp_path / "few.txt"),)
    judged = judge_file(ask(models["Q4_K_M"], corpora=few), tell=quiet).judgement
    assert judged.verdict is Verdict.INCONCLUSIVE
    needed = next(finding for finding in judged.findings if finding.rule == "gate/text-too-short")
    assert "about 80 are needed (40,960 tokens)" in needed.message


def test_an_insane_reference_is_inconclusive(ask: Any, models: dict[str, Path]) -> None:
    strict = replace(STANDARD, reference_ppl_at_most=1.2)
    told = judge_file(ask(models["Q8_0"], texts=("prose",), policy=strict), tell=quiet)
    assert told.judgement.verdict is Verdict.INCONCLUSIVE
    assert "the reference's perplexity on prose is 1.7" in told.judgement.reason
    assert [role for role, _ in told.runs] == ["reference"]  # its sanity comes first


def test_another_source_or_vocabulary_is_not_compared(ask: Any, models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(NotComparable, match="itself quantized"):
        judge_file(ask(models["Q2_K"], reference=models["Q8_0"]), tell=quiet)
    raw = models["Q2_K"].read_bytes()
    other = tmp_path / "other.gguf"
    key = b"tokenizer.ggml.model"
    at = raw.index(key) + len(key) + 4
    size = int.from_bytes(raw[at : at + 8], "little")
    other.write_bytes(raw[: at + 8] + b"x" * size + raw[at + 8 + size :])
    with pytest.raises(NotComparable, match="its tokenizer is 'xxxxx'"):
        judge_file(ask(other), tell=quiet)
    renamed = tmp_path / "renamed.gguf"
    renamed.write_bytes(raw.replace(b"blk.1.attn_q.weight", b"blk.9.attn_q.weight"))
    with pytest.raises(NotComparable, match=r"tensor blk\.1\.attn_q\.weight is missing"):
        judge_file(ask(renamed), tell=quiet)


def test_kept_reference_scores(ask: Any, models: dict[str, Path], tmp_path: Path) -> None:
    """The second gate reads the reference from the cache; a file cut short is made again."""
    cache = tmp_path / "cache"
    request = ask(models["Q4_K_M"], texts=("prose",), base_cache=cache, policy=ALONE, settings=SHORT)
    first = judge_file(request, tell=quiet)
    (kept,) = cache.glob("*.logits")
    second = judge_file(request, tell=quiet)
    assert first.runs[0][0] == "reference"
    assert "reference" not in {role for role, _ in second.runs}
    assert second.judgement == first.judgement
    with kept.open("r+b") as file:
        file.truncate(kept.stat().st_size - 1)
    third = judge_file(request, tell=quiet)
    assert "reference" in {role for role, _ in third.runs}
    assert third.judgement == first.judgement


def test_two_files_of_one_label(ask: Any, models: dict[str, Path], tmp_path: Path) -> None:
    worse = damaged(models["Q4_K_M"], tmp_path / "theirs.gguf", "blk.0.ffn_gate.weight", share=0.02, factor=4)
    judged = judge_file(ask(models["Q4_K_M"], texts=("prose",), against=worse), tell=quiet).judgement
    ratio = next(metric for metric in judged.metrics if metric.name == "kld_of_label")
    assert ratio.value is not None
    assert ratio.value < 0.5
    assert ratio.verdict is Verdict.PASS


def test_the_gate_of_the_bundled_model_is_quick(ask: Any, models: dict[str, Path]) -> None:
    """All five texts by `standard`, baselines made here, in processor time: under 60 s on two cores."""
    before = os.times()
    request = ask(models["Q4_K_M"], texts=("chat", "code", "language", "prose", "sums"), known={})
    judged = judge_file(request, tell=quiet).judgement
    after = os.times()
    assert judged.verdict is Verdict.PASS
    assert sum(after[:4]) - sum(before[:4]) < 100
