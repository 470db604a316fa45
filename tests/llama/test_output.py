"""What the tools print, from recorded lines."""

from __future__ import annotations

import pytest

from quantplan.llama import output
from quantplan.llama.types import BuildInfo
from quantplan.units import MIB


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "version: 0.5.0-dev (build 11312, commit 0c1e570)",
            BuildInfo(version="0.5.0-dev", number=11312, commit="0c1e570"),
        ),
        ("version: 8146 (abc1234)", BuildInfo(version=None, number=8146, commit="abc1234")),
        ("nothing of the kind", BuildInfo(version=None, number=None, commit=None)),
    ],
)
def test_version(line: str, expected: BuildInfo) -> None:
    assert output.parse_version(["banner", line]) == expected


def test_a_depth_one_build_is_known_by_its_commit() -> None:
    assert BuildInfo(version="0.5.0-dev", number=1, commit="0c1e570").label == "0c1e570"
    assert BuildInfo(version="0.5.0-dev", number=11312, commit="0c1e570").label == "b11312-0c1e570"


def test_perplexity_is_none_where_the_line_was_lost() -> None:
    assert output.parse_perplexity(["[1]5.1,[2]5.2,"]) is None
    assert output.parse_perplexity(["Final estimate: PPL = -nan(ind) +/- nan"]) is None
    found = output.parse_perplexity(["Final estimate: PPL = 5.1234 +/- 0.03210"])
    assert found == output.PrintedPerplexity(ppl=5.1234, se=0.0321)


def test_progress() -> None:
    assert output.perplexity_progress("[17]5.1234,[18]5.2") == 18
    assert output.perplexity_progress("no chunk") is None
    assert output.quantize_progress("[  12/ 201] blk.0.attn_q.weight - [ 256, 256,  1,  1]") == (12, 201)


def test_buffers() -> None:
    lines = [
        "load_tensors:        CUDA0 model buffer size =   372.65 MiB",
        "llama_kv_cache:        CPU KV buffer size =   289.00 MiB",
    ]
    assert [(b.device, b.kind, b.n_bytes) for b in output.parse_buffers(lines)] == [
        ("CUDA0", "model", round(372.65 * MIB)),
        ("CPU", "KV", 289 * MIB),
    ]
