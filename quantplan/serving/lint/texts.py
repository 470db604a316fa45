"""Folklore that shows as words, wherever they stand: in a command, a setting or a comment. One row each."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from quantplan.artifact.plan_file import Plan
from quantplan.artifact.results import Finding, Severity
from quantplan.serving.lint.source import Source

E, W, N = Severity.ERROR, Severity.WARNING, Severity.NOTE


@dataclass(frozen=True, slots=True)
class Saying:
    """A pattern for one line, and what is true instead. `unless` is a pattern for the whole file that excuses it."""

    rule: str
    severity: Severity
    pattern: str
    message: str
    help: str
    unless: str | None = None


SAYINGS = (
    Saying("moved-repository", W, r"(github\.com|ghcr\.io)[/:]ggerganov/(llama\.cpp|ggml)", "the project has moved",
           "write ggml-org instead of ggerganov"),
    Saying("hf-command", W, r"\bhuggingface-cli\b", "huggingface-cli is gone", "use `hf`: hf download REPO"),
    Saying("resume-download", W, r"--resume-download\b", "--resume-download is gone: downloads resume by themselves",
           "leave it out"),
    Saying("hf-transfer", W, r"\bHF_HUB_ENABLE_HF_TRANSFER\b", "HF_HUB_ENABLE_HF_TRANSFER does nothing any more",
           "remove it"),
    Saying("cublas-option", E, r"-DLLAMA_CUBLAS\b", "LLAMA_CUBLAS stops the build", "write -DGGML_CUDA=ON"),
    Saying("old-cuda-option", W, r"-DLLAMA_CUDA\b", "LLAMA_CUDA is the old name of GGML_CUDA",
           "write -DGGML_CUDA=ON"),
    Saying("vllm-api-server", W, r"\bvllm\.entrypoints\.openai\.api_server\b",
           "vllm.entrypoints.openai.api_server is the old way to start it", "use `vllm serve MODEL`"),
    Saying("vfs-cache-pressure", W, r"\bvfs_cache_pressure\b",
           "vfs_cache_pressure governs dentries and inodes, not the cached weights, and lower keeps more",
           "leave it out; keep weights from being swapped by MemorySwapMax=0 on the unit"),
    Saying("sliding-window-flag", E, r"(?<![\w-])--sliding-window\b", "there is no flag --sliding-window",
           "leave it out: the model says its window; --swa-full switches the saving off"),
    Saying("k-means", N, r"\bk-?means\b.*\bQ\d_K|\bQ\d_K\w*\b.*\bk-?means\b", "Q4_K_M does not use K-means",
           "it is a weighted search for scales and minima; the K names the block format"),
    Saying("quality-share", N, r"\b9\d\s*%\s*(of\s+)?(the\s+)?quality\b|\bquality\b[^.]{0,30}\b25\s*%\s*(of\s+)?(the\s+)?(mem|size)",
           "no measured figure stands behind a share of quality",
           "measured: Llama-3-8B Q4_K_M is 30.6 % of F16 with perplexity +2.8 %, KL divergence 0.031"),
    Saying("flash-attention-kv", N, r"flash.?att\w*[^.\n]{0,40}\b(cuts|reduces|saves|halves|shrinks|less)\b[^.\n]{0,30}\bKV|flash.?att\w*[^.\n]{0,40}\b[3-6]0\s*[–-]?\s*[3-6]?0?\s*%",
           "flash attention leaves the KV cache as large as it was",
           "it removes the KQ buffer and permits a quantized V; -ctk q8_0 -ctv q8_0 saves 47 % of the cache"),
    Saying("ngl-head-on-cpu", N, r"(-ngl|n[_-]gpu[_-]layers|gpu layers)\W{0,3}\s*3\d\b[^\n]*\b(embedding|head|output)",
           "-ngl 30 to 35 does not leave the output head on the CPU",
           "the embedding is always on the host; the head is the first layer that is offloaded"),
    Saying("single-threaded", N, r"llama\S*[^\n]{0,30}\bsingle.?thread", "llama.cpp uses the physical cores by default",
           "set --threads and --threads-batch where a quota limits them"),
    Saying("taskset-numa", W, r"\btaskset\b[^\n]*\b(llama|numa)|\btaskset\s+(-c|--cpu-list|0x)[^\n]*\S*llama",
           "taskset binds CPUs, not memory", "numactl --cpunodebind=N --membind=N … --numa numactl"),
    Saying("vram-swapped", N, r"\bswap\w*\b[^\n]{0,30}\bVRAM\b|\bVRAM\b[^\n]{0,30}\bswap(s|ped|ping)?\b",
           "the kernel does not swap VRAM to disk: the allocation fails", "plan for what fits: quantplan recommend"),
    Saying("kv-grows", N, r"\bKV\b[^\n]{0,25}\b(grows?|fragment\w*)\b", "the KV cache is allocated whole at the start",
           "its size is that of --ctx-size, whatever the requests are"),
    Saying("context-cost", N, r"8k?\s*(->|→|to)\s*32k?\b[^\n]{0,40}\b(1\.5|2)\s*(-|–|to)?\s*\d?\s*GB",
           "8K to 32K costs more than that", "3 GiB in f16 for Llama-3.1-8B: quantplan estimate says it for yours"),
    Saying("pcie-gen3-x8", N, r"\bgen\s?3\s*x8\b[^\n]{0,25}\b1[56](\.\d+)?\s*GB", "PCIe Gen3 x8 is 7.88 GB/s",
           "15.75 GB/s is Gen3 x16"),
    Saying("two-cards-slower", N, r"\b(split\w*|two (cards|gpus))\b[^\n]{0,40}\bslower\b", "a layer split costs about 3 %",
           "and fits more: use it when one card is too small"),
    Saying("q3-broken", N, r"\bQ3_K\w*\b[^\n]{0,40}\b(breaks?|broken|unusable|destroys?|ppl\s*>)",
           "Q3_K does not break a model", "published perplexity: Q3_K_M +0.66, Q3_K_S +1.6, Q2_K +3.5 on Llama-3-8B"),
    Saying("bench-memory", N, r"llama-bench\b[^\n]{0,40}\b(peak )?(memory|vram)\b", "llama-bench prints no memory",
           "quantplan rehearse reads the buffers that the engine prints"),
    Saying("driver-version", N, r"driver\s*(>=|≥|version)?\s*535\b[^\n]{0,30}\bcuda\s*12", "CUDA 12 needs driver 525 or later",
           "and CUDA 13 needs 580"),
    Saying("free-share", N, r"\b(keep|leave|reserve)\b[^\n]{0,15}\b(20\s*%|2\s*GB)[^\n]{0,25}\b(vram|free|gpu)",
           "a fixed share or 2 GB is nobody's measurement",
           "driver context, what else runs, and a margin, each with its size: quantplan recommend --explain"),
    Saying("offload-check", N, r"llama_supports_gpu_offload[^\n]{0,60}flash", "llama_supports_gpu_offload() says nothing of flash attention",
           "it says that a GPU backend was compiled in; -fa auto decides by device"),
    Saying("ngl-minus-one", N, r"(-ngl|n[_-]gpu[_-]layers)\W{0,3}\s*-1\b[^\n]*\b(swap|spill|overflow)",
           "a model too large for the card is not swapped: the allocation fails", "-ngl as planned, --fit off"),
    Saying("pipeline-20b", N, r"pipeline.?parallel\w*[^\n]{0,40}\b20\s*B\b", "pipeline parallelism is no matter of size",
           "without NVLink it is the one to prefer wherever two cards are needed"),
    Saying("throttles-after", N, r"throttl\w*\b[^\n]{0,30}\b\d+\s*[–-]?\s*\d*\s*min", "no source says when a card throttles",
           "read the throttle reasons: quantplan monitor"),
    Saying("code-accuracy", N, r"\bQ4_K_M\b[^\n]{0,40}\b1[0-8]\s*[–-]?\s*(1\d)?\s*%[^\n]{0,25}\b(accuracy|cod)",
           "no source says that Q4_K_M costs so much in code", "published drops are 1 to 3 points"),
    Saying("vllm-16gb", N, r"vllm\b[^\n]{0,25}\b(needs|requires|minimum|at least)\b[^\n]{0,15}\b16\s*GB", "what vLLM needs depends on the model",
           "AWQ runs on less than 16 GB"),
    Saying("acceptance-figures", N, r">\s*40\s*(tok|t/s)[^\n]{0,40}<\s*80\s*%|<\s*80\s*%[^\n]{0,10}\bvram\b",
           "memory is allocated whole at the start: a share of it says nothing", "compare with the plan's own figures: quantplan verify-serving"),
)  # fmt: skip


def sayings(source: Source, _: Plan | None) -> Iterable[Finding]:
    """Every row against every line, comments too; two findings of one row only where they stand on two lines."""
    for number, line in enumerate(source.lines, start=1):
        for told in SAYINGS:
            if re.search(told.pattern, line, re.IGNORECASE):
                yield Finding(
                    rule=f"lint/{told.rule}", severity=told.severity, message=told.message, file=source.path,
                    line=number, help=told.help,
                )  # fmt: skip
