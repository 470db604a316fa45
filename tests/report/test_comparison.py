"""Artifacts side by side: what is compared, who dominates whom, refusals, the picture."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from quantplan.artifact.receipt import FileEntry, Receipt, write_receipt
from quantplan.artifact.results import Metric, Result, Verdict, write_result
from quantplan.artifact.store import find_artifact
from quantplan.errors import BadValue, DifferentSources, ExtraMissing
from quantplan.report.comparison import Compared, Comparison, Measured, compare, comparison_rows, dominates
from quantplan.report.comparison_html import comparison_html
from quantplan.report.comparison_text import comparison_text
from quantplan.report.pareto_plot import HEIGHT, WIDTH, layout, pareto_svg, write_plot
from quantplan.report.picture import Dot, Words
from quantplan.report.table_files import csv_text, write_csv, write_parquet

TEXTS = (FileEntry(name="prose", sha256="1" * 64, bytes=1), FileEntry(name="code", sha256="2" * 64, bytes=1))


def artifact(
    folder: Path, quant: str, n_bytes: int, klds: dict[str, tuple[float, float | None]] | None,
    *, weights: str = "w" * 64, texts: tuple[FileEntry, ...] = TEXTS, speed: float | None = None,
) -> Path:  # fmt: skip
    own = folder / f"toy-{quant}"
    own.mkdir(parents=True)
    sha256 = f"{abs(hash((quant, n_bytes))):064x}"[:64]
    source = {"repo": "org/toy", "revision": "c" * 40, "name": "toy",
              "files": [{"name": "model.safetensors", "sha256": weights, "bytes": 1},
                        {"name": "config.json", "sha256": f"{n_bytes:064x}", "bytes": 1}]}  # fmt: skip
    file = FileEntry(name=f"toy-{quant}.gguf", sha256=sha256, bytes=n_bytes)
    write_receipt(own, Receipt(files=(file,), quant=quant, source=source, tools={}, steps=(), texts=texts))
    told: dict[str, Any] = {"artifact_sha256": sha256, "policy": "p", "verdict": Verdict.PASS, "tool": {}, "host": {}}
    if klds is not None:
        metrics = [metric("kld_mean", text, value, se) for text, (value, se) in klds.items()]
        metrics += [metric("ppl_ratio", text, 1 + value, None) for text, (value, _) in klds.items()]
        write_result(own, "gate", Result(metrics=tuple(metrics), **told))
    if speed is not None:
        write_result(own, "bench", Result(metrics=(metric("decode_tokens_per_s", None, speed, 0.5),), **told))
    return own


def metric(name: str, corpus: str | None, value: float, se: float | None) -> Metric:
    return Metric(name=name, corpus=corpus, value=value, se=se, low=None, high=None, limit=None, n=100)


def ask(*folders: Path) -> Comparison:
    return compare([find_artifact(one) for one in folders], devices=("Host",), memory_of=lambda path: (7 * 1024**2,))


def test_side_by_side(tmp_path: Path) -> None:
    found = ask(
        artifact(tmp_path, "Q8_0", 8_000, {"prose": (0.001, 0.0001), "code": (0.003, 0.0001)}),
        artifact(tmp_path, "Q4_K_M", 4_000, {"prose": (0.02, 0.003), "code": (0.04, 0.004)}, speed=40.0),
    )
    assert [one.name for one in found.artifacts] == ["toy-Q4_K_M", "toy-Q8_0"]  # the smallest first
    assert found.artifacts[0].kld == Measured(value=pytest.approx(0.03), se=pytest.approx(0.0025))  # type: ignore[arg-type]
    assert found.warnings == ()
    assert comparison_text(found) == (
        "org/toy: mean over prose, code; ± is two standard errors\n"
        "\n"
        "artifact       size              KLD  PPL ratio  decode t/s  memory Host  gate  pareto\n"
        "toy-Q4_K_M  3.9 KiB     0.03 ± 0.005     1.0300  40.0 ± 1.0        7 MiB  pass     yes\n"
        "toy-Q8_0    7.8 KiB  0.002 ± 0.00014     1.0020                    7 MiB  pass     yes"
    )


def test_only_texts_that_all_have_are_averaged(tmp_path: Path) -> None:
    found = ask(
        artifact(tmp_path, "Q8_0", 8_000, {"prose": (0.001, 0.0001), "code": (0.003, 0.0001)}),
        artifact(tmp_path, "Q4_K_M", 4_000, {"code": (0.04, 0.004)}),
    )
    assert found.texts == ("code",)
    assert [one.kld.value for one in found.artifacts if one.kld] == [0.04, 0.003]


def test_what_was_not_measured_is_empty_and_said(tmp_path: Path) -> None:
    found = ask(artifact(tmp_path, "Q8_0", 8_000, {"prose": (0.001, 0.0001)}), artifact(tmp_path, "Q2_K", 2_000, None))
    assert found.warnings == ("no divergence was measured of toy-Q2_K",)
    row = comparison_rows(found)[0]
    assert (row["name"], row["kld_mean"], row["pareto"], row["verdict"]) == ("toy-Q2_K", None, None, None)


def test_unlike_texts_are_said(tmp_path: Path) -> None:
    other = (replace(TEXTS[0], sha256="9" * 64), TEXTS[1])
    found = ask(
        artifact(tmp_path, "Q8_0", 8_000, {"prose": (0.001, 0.0001)}),
        artifact(tmp_path, "Q2_K", 2_000, {"prose": (0.1, 0.01)}, texts=other),
    )
    assert found.warnings == ("the artifacts were measured on unlike texts: their divergences do not compare",)


def test_artifacts_of_different_sources_are_refused(tmp_path: Path) -> None:
    first = artifact(tmp_path / "a", "Q8_0", 8_000, {"prose": (0.001, 0.0001)})
    other = artifact(tmp_path / "b", "Q8_0", 8_001, {"prose": (0.001, 0.0001)}, weights="z" * 64)
    with pytest.raises(DifferentSources, match="the weights of org/toy@cccccccccccc and of org/toy"):
        ask(first, other)


def test_one_artifact_or_the_same_twice_is_refused(tmp_path: Path) -> None:
    one = artifact(tmp_path, "Q8_0", 8_000, None)
    with pytest.raises(BadValue, match="artifacts to compare are two or more"):
        ask(one)
    with pytest.raises(BadValue, match="is the same file as"):
        ask(one, one)


def point(name: str, n_bytes: int, kld: float | None, se: float | None = 0.0) -> Compared:
    return Compared(
        name=name, quant=name, sha256=name, bytes=n_bytes, kld=Measured(value=kld, se=se) if kld is not None else None,
        kld_by_text=(), ppl_ratio=None, same_top=None, decode_tokens_per_s=None, prefill_tokens_per_s=None,
        memory_bytes=None, verdict=None, folder=name,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("other", "row", "expected"),
    [
        (point("a", 10, 0.01), point("b", 20, 0.02), True),  # smaller and better
        (point("a", 10, 0.02), point("b", 20, 0.01), False),  # a trade
        (point("a", 10, 0.011, 0.001), point("b", 20, 0.010, 0.001), True),  # the larger is better by noise only
        (point("a", 10, 0.014, 0.001), point("b", 20, 0.010, 0.001), False),
        (point("a", 10, 0.01), point("b", 10, 0.02), True),
        (point("a", 10, 0.010, 0.001), point("b", 10, 0.011, 0.001), False),
        (point("a", 30, 0.001), point("b", 20, 0.01), False),  # larger never dominates
        (point("a", 10, None), point("b", 20, 0.02), False),
    ],
)
def test_dominance_is_beyond_the_noise(other: Compared, row: Compared, expected: bool) -> None:
    assert dominates(other, row) is expected


def comparison(*points: Compared, source: str = "org/toy") -> Comparison:
    marked = [
        replace(p, dominated_by=next((o.name for o in points if o is not p and dominates(o, p)), None)) for p in points
    ]
    return Comparison(source=source, texts=("prose",), devices=(), artifacts=tuple(marked), warnings=())


NINE = comparison(
    point("Q2_K", 3 << 30, 0.3, 0.02), point("Q3_K_M", 4 << 30, 0.1, 0.004), point("IQ4_XS", 4500 << 20, 0.03, 0.001),
    point("Q4_K_S", 4600 << 20, 0.0302, 0.001), point("Q4_K_M", 4700 << 20, 0.0298, 0.001),
    point("Q5_K_M", 5500 << 20, 0.01, 0.0005), point("Q6_K", 6400 << 20, 0.004, 0.0002),
    point("Q8_0", 8 << 30, 0.001, 0.00005), point("BF16", 15 << 30, 0.0, 0.0),
)  # fmt: skip


def test_the_picture_is_well_formed_and_holds_every_point_inside_the_page() -> None:
    root = ET.fromstring(pareto_svg(NINE))
    dots = root.findall(".//{*}circle")
    assert len(dots) == 9
    assert sum(dot.get("fill") == "#c8553d" for dot in dots) == 2  # Q4_K_S and Q4_K_M give nothing over IQ4_XS
    for element in root.iter():
        for key, size in (("cx", WIDTH), ("cy", HEIGHT), ("x", WIDTH), ("y", HEIGHT)):
            assert 0 <= float(element.get(key, "0")) <= size
    assert dots[0].find("{*}title").text == "Q2_K: KLD 0.3, 3.00 GiB"  # type: ignore[union-attr]


def test_labels_do_not_cover_each_other() -> None:
    crowded = comparison(*(point(f"Q{n}", (40 + n) << 20, 0.01 * 1.01**n, 0.001) for n in range(14)))
    words = [s for s in layout(crowded) if isinstance(s, Words) and s.text.startswith("Q")]
    assert len(words) == 14
    boxes = [(w.x, w.x + 6.8 * len(w.text), w.y) for w in words]
    for i, (start, end, base) in enumerate(boxes):
        for s, e, b in boxes[i + 1 :]:
            assert not (abs(base - b) < 12 and start < e and s < end)


def test_better_lies_lower_and_larger_lies_to_the_right() -> None:
    dots = [shape for shape in layout(NINE) if isinstance(shape, Dot)]
    assert [dot.x for dot in dots] == sorted(dot.x for dot in dots)
    by_kld = sorted(zip((a.kld.value for a in NINE.artifacts if a.kld), (dot.y for dot in dots), strict=True))
    assert [y for _, y in by_kld] == sorted((y for _, y in by_kld), reverse=True)


@pytest.mark.parametrize("values", [(1e-9, 1e-9), (0.0, 0.0), (0.5, 3.0), (0.001, 0.0)])
def test_axes_hold_any_values(values: tuple[float, float]) -> None:
    found = comparison(point("A", 1, values[0], 0.001), point("B", 900 << 30, values[1], 0.001))
    ET.fromstring(pareto_svg(found))


def test_html_stands_alone_and_names_are_escaped() -> None:
    found = comparison(*NINE.artifacts, source="<script>alert(1)</script>")
    page = comparison_html(found, pareto_svg(found))
    assert "<script" not in page
    assert not re.search(r"(src|href)=", page)
    assert page.count("<tr") == 10
    assert page.count("<tr class=off>") == 2


def test_a_png_is_written_whole(tmp_path: Path) -> None:
    write_plot(tmp_path / "sub" / "p.png", NINE)
    data = (tmp_path / "sub" / "p.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(data[16:20], "big") == 2 * WIDTH
    assert list((tmp_path / "sub").iterdir()) == [tmp_path / "sub" / "p.png"]


def test_a_png_without_matplotlib_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ExtraMissing, match="a PNG needs matplotlib, which is not installed"):
        write_plot(tmp_path / "p.png", NINE)


def test_a_plot_of_another_kind_or_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadValue, match=r"is none of \.svg, \.html, \.png"):
        write_plot(tmp_path / "p.pdf", NINE)
    with pytest.raises(BadValue, match="has nothing to show: no divergence was measured"):
        write_plot(tmp_path / "p.svg", comparison(point("A", 1, None), point("B", 2, None)))


def test_rows_as_csv_and_parquet(tmp_path: Path) -> None:
    rows = [{"name": "a,b", "n": 1, "x": None}, {"name": 'c"d', "n": 2, "x": 0.5, "more": True}]
    assert csv_text(rows) == 'name,n,x,more\n"a,b",1,,\n"c""d",2,0.5,True\n'
    write_csv(tmp_path / "sub" / "t.csv", rows)
    assert (tmp_path / "sub" / "t.csv").read_text() == csv_text(rows)
    write_parquet(tmp_path / "t.parquet", rows)
    import pandas as pd

    back = json.loads(pd.read_parquet(tmp_path / "t.parquet").to_json(orient="records"))
    assert back == [{"name": "a,b", "n": 1, "x": None, "more": None}, {"name": 'c"d', "n": 2, "x": 0.5, "more": True}]


def test_parquet_without_pyarrow_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ExtraMissing, match="a Parquet file needs pyarrow, which is not installed"):
        write_parquet(tmp_path / "t.parquet", [{"a": 1}])
    assert not list(tmp_path.iterdir())
