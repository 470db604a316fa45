"""GGUF headers over HTTP: how few requests, how few bytes, and what a broken server does to them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from gguf_fixture import vocabulary_gguf, write_gguf
from loopback_hub import FakeFile, Hole, LoopbackHub

from quantplan import errors
from quantplan.model.gguf_header import ArrayInfo, GgufHeader, parse_gguf_header, read_gguf_header
from quantplan.model.hub import Hub
from quantplan.model.hub_cache import HubCache
from quantplan.model.ranges import RangeSource
from quantplan.model.resolve import Catalog, resolve_model
from quantplan.units import GIB, MIB


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as served:
        yield served


@pytest.mark.parametrize(
    ("n_tokens", "n_merges", "token_bytes"),
    [(0, 0, 1), (1_000, 0, 8), (32_000, 0, 6), (128_256, 280_147, 7), (262_144, 514_906, 8), (400_000, 900_000, 24)],
)
def test_at_most_six_requests_and_one_mib_more_than_the_header(
    hub: LoopbackHub, tmp_path: Path, n_tokens: int, n_merges: int, token_bytes: int
) -> None:
    head = vocabulary_gguf(tmp_path / "x", n_tokens=n_tokens, n_merges=n_merges, token_bytes=token_bytes)
    hub.add("org/m-GGUF", {"m-Q8_0.gguf": Hole(head, len(head) + 16 * GIB)})
    found = resolve_model("org/m-GGUF", catalog=Catalog(find=lambda name: None), cache=tmp_path / "c", endpoint=hub.url)
    assert found.header.metadata["tokenizer.ggml.merges"] == ArrayInfo(type_name="STRING", n=n_merges)
    assert found.header.data_offset == len(head)
    assert len(hub.log) <= 6, [(entry.path, entry.byte_range) for entry in hub.log]
    source = RangeSource("m", Hub(endpoint=hub.url).ranges("org/m-GGUF", "main", "m-Q8_0.gguf"))
    with source:
        parse_gguf_header(source)
    assert source.n_bytes <= len(head) + MIB
    assert source.n_requests <= 4


def test_what_is_asked_for_is_bounded_too(hub: LoopbackHub, tmp_path: Path) -> None:
    """Not only what is read: a server may send all that was asked. True until the last request, which is open-ended."""
    head = vocabulary_gguf(tmp_path / "x", n_tokens=128_256, n_merges=0, token_bytes=7)
    hub.add("org/m-GGUF", {"m-Q8_0.gguf": Hole(head, len(head) + 16 * GIB)})
    with RangeSource("m", Hub(endpoint=hub.url).ranges("org/m-GGUF", "main", "m-Q8_0.gguf")) as source:
        parse_gguf_header(source)
    ends = [int(entry.byte_range.split("-")[1]) for entry in hub.log]
    assert max(ends) < len(head) + MIB
    assert sum(entry.n_sent for entry in hub.log) <= len(head) + MIB


def served(hub: LoopbackHub, path: Path) -> str:
    hub.plain[f"/files/{path.name}"] = FakeFile(path.read_bytes(), "")
    return f"{hub.url}/files/{path.name}"


def read_url(url: str, hub: LoopbackHub) -> GgufHeader:
    return resolve_model(url, catalog=Catalog(find=lambda name: None), endpoint=hub.url).header


def test_an_address_gives_the_header_a_local_file_gives(hub: LoopbackHub, tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    local, remote = read_gguf_header(tmp_path / "m.gguf"), read_url(served(hub, tmp_path / "m.gguf") + "?key=1", hub)
    assert (remote.metadata, remote.tensors, remote.file_bytes) == (local.metadata, local.tensors, local.file_bytes)
    assert [entry.byte_range for entry in hub.log] == [f"bytes=0-{MIB + 2}"]
    write_gguf(tmp_path / "s.gguf", split_max_tensors=1)
    urls = [served(hub, path) for path in sorted(tmp_path.glob("s-*"))]
    assert read_url(urls[1], hub).tensors == read_gguf_header(tmp_path / "s-00001-of-00003.gguf").tensors


def test_a_server_without_ranges_is_read_from_the_start_or_refused(hub: LoopbackHub, tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    hub.serves_ranges = False
    assert read_url(served(hub, tmp_path / "m.gguf"), hub).metadata["t.u8"] == 200
    big = vocabulary_gguf(tmp_path / "x", n_tokens=128_256, n_merges=1000, token_bytes=7)
    hub.plain["/big.gguf"] = FakeFile(Hole(big, len(big) + 16 * GIB), "")
    assert read_url(f"{hub.url}/big.gguf", hub).metadata["tokenizer.ggml.merges"] == ArrayInfo(
        type_name="STRING", n=1000
    )


@pytest.mark.parametrize("times", [1, 2])
def test_a_broken_connection_is_taken_up_where_it_broke(hub: LoopbackHub, tmp_path: Path, times: int) -> None:
    head = vocabulary_gguf(tmp_path / "x", n_tokens=128_256, n_merges=280_147, token_bytes=7)
    hub.plain["/m.gguf"] = FakeFile(Hole(head, len(head) + 16 * GIB), "")
    hub.fail("/m.gguf", reset_after=300_000, times=times)
    assert read_url(f"{hub.url}/m.gguf", hub).data_offset == len(head)


def test_a_connection_that_keeps_breaking_is_given_up(hub: LoopbackHub, tmp_path: Path) -> None:
    head = vocabulary_gguf(tmp_path / "x", n_tokens=128_256, n_merges=280_147, token_bytes=7)
    hub.plain["/m.gguf"] = FakeFile(Hole(head, len(head) + 16 * GIB), "")
    hub.fail("/m.gguf", reset_after=1000)
    with pytest.raises(errors.HubUnreachable, match="no connection"):
        read_url(f"{hub.url}/m.gguf", hub)
    assert len(hub.log) <= 6


def test_refusals_of_an_address(hub: LoopbackHub, tmp_path: Path) -> None:
    with pytest.raises(errors.HubFailed, match=r"nothing\.gguf: the server answered 404"):
        read_url(f"{hub.url}/nothing.gguf", hub)
    hub.plain["/page.gguf"] = FakeFile(b"<!DOCTYPE html>", "")
    with pytest.raises(errors.BadModelFile, match="this is not a GGUF file: it starts with '<!DO'"):
        read_url(f"{hub.url}/page.gguf", hub)
    hub.plain["/empty.gguf"] = FakeFile(b"", "")
    with pytest.raises(errors.QuantplanError):
        read_url(f"{hub.url}/empty.gguf", hub)
    hub.fail("/loop.gguf", status=302, headers={"Location": "/loop.gguf"})
    with pytest.raises(errors.HubFailed, match="redirects without end"):
        read_url(f"{hub.url}/loop.gguf", hub)
    with pytest.raises(errors.QuantplanError):
        read_url("http://[bad", hub)


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    head = vocabulary_gguf(tmp_path / "x", n_tokens=128_256, n_merges=280_147, token_bytes=7)
    with LoopbackHub() as hub:
        hub.plain["/m.gguf"] = FakeFile(Hole(head, len(head) + 16 * GIB), "")
        ranges = Hub(endpoint=hub.url).url_ranges(f"{hub.url}/m.gguf")
        with RangeSource("m.gguf", ranges) as source:
            source.read(0, 10, certain=10)
            hub.plain["/m.gguf"] = FakeFile(Hole(head, 12345678), "")
            with pytest.raises(errors.BadModelFile, match="its size changed from"):
                source.read(5 * MIB, 10, certain=10)


def test_the_cache_stays_inside_its_folder(tmp_path: Path) -> None:
    cache = HubCache(tmp_path / "cache")
    cache.put("../../etc", "..", "../passwd", b"x")
    assert cache.get("../../etc", "..", "../passwd") == b"x"
    assert [p.name for p in tmp_path.iterdir()] == ["cache"]
    assert all(os.path.commonpath([tmp_path / "cache", p]) == str(tmp_path / "cache") for p in tmp_path.rglob("*"))
