"""Machines by name: cards, machines, cloud instances, saved hosts and handwritten files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from quantplan.errors import AmbiguousGpu, BadProfile, ExitCode, UnknownGpu
from quantplan.hardware.facts import HostFacts
from quantplan.hardware.gpu_table import all_specs, find_gpu, short_name, short_names, spec_of_product
from quantplan.hardware.profiles import cloud_instances, load_profile, parse_machine, save_profile
from quantplan.places import data_file
from quantplan.units import GIB, MIB

# short name -> (card, GiB as sold, GB/s of its datasheet)
CARDS = {
    "rtx4070": ("GeForce RTX 4070", 12, 504),
    "RTX 4070": ("GeForce RTX 4070", 12, 504),
    "4070": ("GeForce RTX 4070", 12, 504),
    "rtx4070mobile": ("GeForce RTX 4070 Mobile", 8, 256),
    "rtx4070tisuper": ("GeForce RTX 4070 Ti SUPER", 16, 672),
    "3090": ("GeForce RTX 3090", 24, 936),
    "rtx4090": ("GeForce RTX 4090", 24, 1008),
    "rtx5090": ("GeForce RTX 5090", 32, 1792),
    "rtx5060": ("GeForce RTX 5060", 8, 448),
    "rtx3060": ("GeForce RTX 3060 12 GB", 12, 360),
    "rtx3060-8gb": ("GeForce RTX 3060 8 GB", 8, 240),
    "rx9070": ("Radeon RX 9070", 16, 644),
    "7900xtx": ("Radeon RX 7900 XTX", 24, 960),
    "h200": ("H200 SXM 141 GB", 141, 4800),
    "h100": ("H100 SXM5 80 GB", 80, 3350),
    "h100-nvl": ("H100 NVL 94 GB", 94, 3900),
    "b200": ("B200 SXM 180 GB", 180, 8000),
    "a100-sxm4-80gb": ("A100 SXM4 80 GB", 80, 2039),
    "l4": ("L4", 24, 300),
    "l40s": ("L40S", 48, 864),
    "a10g": ("A10G", 24, 600),
    "t4": ("Tesla T4", 16, 320),
    "mi300x": ("Radeon Instinct MI300X", 192, 5300),
    "b580": ("Arc B580", 12, 456),
    "gb10": ("GB10", 128, 273),
    "spark": ("GB10", 128, 273),
    "strixhalo": ("Radeon 8060S", 128, 256),
    "m4pro": ("Apple M4 Pro", 64, 273),
    "m3ultra": ("Apple M3 Ultra", 512, 819),
    "rtxpro6000": ("RTX PRO 6000 Blackwell", 96, 1792),
}


@pytest.mark.parametrize("text", CARDS)
def test_short_names(text: str) -> None:
    spec = find_gpu(text)
    assert (spec.name, spec.memory_bytes // GIB, spec.bandwidth_bytes_per_s // 10**9) == CARDS[text]


@pytest.mark.parametrize(
    ("text", "candidates"),
    [
        ("a100", ("a100pcie40gb", "a100pcie80gb", "a100sxm440gb", "a100sxm480gb")),
        ("a100-80gb", ("a100pcie80gb", "a100sxm480gb")),
        ("rtx4060ti", ("rtx4060ti16gb", "rtx4060ti8gb")),
        ("5060ti", ("rtx5060ti16gb", "rtx5060ti8gb")),
        ("m4max", ("m4max32core", "m4max40core")),
    ],
)
def test_several_cards_of_one_name_are_listed(text: str, candidates: tuple[str, ...]) -> None:
    with pytest.raises(AmbiguousGpu) as caught:
        find_gpu(text)
    assert caught.value.candidates == candidates
    assert caught.value.exit_code is ExitCode.USAGE
    for name in candidates:
        assert short_name(find_gpu(name).name) == name


def test_a_near_name_is_offered() -> None:
    with pytest.raises(UnknownGpu) as caught:
        find_gpu("rtx4079")
    assert "rtx4070" in caught.value.near
    with pytest.raises(UnknownGpu):
        find_gpu("")


def test_every_cards_own_name_finds_it() -> None:
    """No two cards share a short name, and no short name hides a card's own."""
    names = [short_name(name) for name in all_specs()]
    assert len(names) == len(set(names))
    assert not set(names) & set(short_names())
    for name, spec in all_specs().items():
        assert find_gpu(name) == spec


def test_the_table_is_plausible() -> None:
    for spec in all_specs().values():
        assert 4 * GIB <= spec.memory_bytes <= 512 * GIB, spec
        assert 10**10 <= spec.bandwidth_bytes_per_s <= 10**13, spec
        assert spec.vendor in ("nvidia", "amd", "intel", "apple"), spec


@pytest.mark.parametrize(
    ("product", "mib", "card"),
    [
        ("NVIDIA GeForce RTX 3060", 12288, "GeForce RTX 3060 12 GB"),
        ("NVIDIA GeForce RTX 3060", 8192, "GeForce RTX 3060 8 GB"),
        ("NVIDIA GeForce RTX 4060 Ti", 16380, "GeForce RTX 4060 Ti 16 GB"),
        ("NVIDIA GeForce RTX 4070 Laptop GPU", 8188, "GeForce RTX 4070 Mobile"),
        ("NVIDIA L4", 23034, "L4"),
        ("NVIDIA H200", 143771, "H200 SXM 141 GB"),
        ("NVIDIA A100-SXM4-80GB", 81920, "A100 SXM4 80 GB"),
        ("NVIDIA GeForce RTX 4090", 8192, None),  # a name with a third of the memory is not that card
        ("NVIDIA Something", 8192, None),
    ],
)
def test_what_drivers_call_cards(product: str, mib: int, card: str | None) -> None:
    spec = spec_of_product(product, mib * MIB)
    assert (spec.name if spec else None) == card


# ---- machines


def test_two_cards_and_ram() -> None:
    host = load_profile("2x3090+64GB")
    assert [(g.name, g.product, g.total_bytes) for g in host.gpus] == [
        ("CUDA0", "GeForce RTX 3090", 24 * GIB),
        ("CUDA1", "GeForce RTX 3090", 24 * GIB),
    ]
    assert host.gpus[0].free_bytes == 24 * GIB - 24 * GIB // 40
    assert (host.ram.total_bytes, host.profile) == (64 * GIB, "2x3090+64GB")
    assert host.warnings == ("the CPU of 2x3090+64GB is not known: assumed 8 cores",)


def test_ram_that_was_not_said_is_assumed_and_told() -> None:
    host = load_profile("rtx4070")
    assert host.ram.total_bytes == 32 * GIB
    assert host.warnings[0] == "the RAM of rtx4070 was not given: assumed 32 GiB; name it as in rtx4070+32GB"


def test_shared_memory_is_the_hosts() -> None:
    mac = load_profile("m4pro+48GB")
    assert (mac.os, mac.gpus[0].name, mac.gpus[0].total_bytes) == ("Darwin", "MTL0", 36 * GIB)
    assert mac.ram.bandwidth_bytes_per_s == 273 * 10**9
    small = load_profile("m1+16GB")
    assert small.gpus[0].total_bytes == 16 * GIB * 2 // 3
    spark = load_profile("spark")
    assert (spark.gpus[0].total_bytes, spark.gpus[0].unified) == (128 * GIB, True)


def test_unlike_cards_keep_their_order_and_vendor() -> None:
    host = load_profile("rtx4090+7900xtx+rtx3090+128GB")
    assert [gpu.name for gpu in host.gpus] == ["CUDA0", "ROCm0", "CUDA1"]


def test_no_card() -> None:
    assert load_profile("cpu+16GB").gpus == load_profile("16GB").gpus == ()


def test_what_drivers_keep_of_cards_with_ecc() -> None:
    """github.com/modal-labs/modal-client/pull/2797: an L4 shows 23,034 MiB, an A10G 23,028, a T4 15,360."""
    totals = {name: load_profile(f"{name}+32GB").gpus[0].total_bytes // MIB for name in ("l4", "a10g", "t4", "l40s")}
    assert totals == {"l4": 23034, "a10g": 23028, "t4": 15360, "l40s": 46068}


@pytest.mark.parametrize("name", cloud_instances())
def test_cloud_instances(name: str) -> None:
    row, host = cloud_instances()[name], load_profile(name)
    assert len(host.gpus) == row["n_gpus"] and (host.warnings == ()) is row["checked"]
    assert host.ram.total_bytes == row["ram_gib"] * GIB
    assert host.cpu.n_threads == max(row["n_vcpus"] // 2, 1)
    assert row["source"].startswith("https://")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0x3090", "0 cards: must be 1 to 64"),
        ("65x3090", "65 cards"),
        ("3090++64GB", "an empty part"),
        ("64GB+64GB", "names the RAM twice"),
        ("3090+0GB", "impossible size of RAM"),
        ("3090+999999GB", "impossible size of RAM"),
    ],
)
def test_impossible_machines(text: str, said: str) -> None:
    with pytest.raises(BadProfile, match=said):
        parse_machine(text)


# ---- files

GOOD = """
name = "my-box"
[[gpu]]
card = "rtx3090"
count = 2
free = "22GiB"
[[gpu]]
name = "Prototype"
vendor = "amd"
memory = "48GB"
bandwidth = "864GB/s"
[cpu]
model = "EPYC"
cores = 16
threads = 14
simd = ["avx2", "avx512f"]
[ram]
total = "128GB"
bandwidth = "180GB/s"
[disk]
path = "/models"
free = "500GB"
read = "3GB/s"
kind = "nvme"
"""


def test_a_handwritten_file(tmp_path: Path) -> None:
    path = tmp_path / "box.toml"
    path.write_text(GOOD)
    host = load_profile(str(path))
    assert [(g.name, g.product, g.total_bytes, g.free_bytes, g.bandwidth_bytes_per_s) for g in host.gpus] == [
        ("CUDA0", "GeForce RTX 3090", 24 * GIB, 22 * GIB, 936_192_000_000),
        ("CUDA1", "GeForce RTX 3090", 24 * GIB, 22 * GIB, 936_192_000_000),
        ("ROCm0", "Prototype", 48 * GIB, 48 * GIB, 864 * 10**9),
    ]
    assert (host.cpu.n_physical, host.cpu.n_threads, host.cpu.simd) == (16, 14, ("avx2", "avx512f"))
    assert (host.ram.total_bytes, host.ram.bandwidth_bytes_per_s) == (128 * GIB, 180 * 10**9)
    assert host.disk is not None and host.disk.read_bytes_per_s == 3 * 10**9
    assert host.warnings == ()


BAD_FILES = {
    'gpus = 1\n': "unknown key 'gpus'; did you mean 'gpu'\\?; known here: name, gpu, cpu, ram, disk",
    '[[gpu]]\ncard = "rtx3090"\nvram = 24\n': "unknown key 'vram'; known here: card, count, name, vendor, memory, free",
    '[gpu]\ncard = "rtx3090"\n': r"gpu: must be written \[\[gpu\]\]",
    '[[gpu]]\nname = "X"\n': "needs a 'card' of the table, or at least its 'memory'",
    '[[gpu]]\ncard = "rtx3090"\ncount = 0\n': "0 is not a whole number from 1 to 64",
    '[[gpu]]\nmemory = "lots"\n': "'lots' is not a size",
    '[[gpu]]\nmemory = "9000GB"\n': "impossible: 9663676416000",
    '[[gpu]]\nmemory = "-1"\n': "'-1' is not a size",
    '[[gpu]]\nmemory = -5\n': "impossible: -5",
    '[[gpu]]\nmemory = "24GB"\nfree = "25GB"\n': "free: impossible",
    '[[gpu]]\nmemory = "24GB"\nvendor = "3dfx"\n': "'3dfx' is not known; known here: nvidia, amd, intel, apple",
    '[ram]\ntotal = "8GB"\navailable = "9GB"\n': "ram.available: impossible",
    "[ram]\navailable = 1\n": "needs 'total'",
    "[cpu]\nthreads = 4\n": "needs 'cores'",
    '[cpu]\ncores = 4\nlogical = 2\nthreads = 4\n': "cpu.threads: impossible",
    "[[[": "cannot be read",
}  # fmt: skip


@pytest.mark.parametrize("text", BAD_FILES)
def test_bad_files(text: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(BadProfile, match=BAD_FILES[text]) as caught:
        load_profile(str(path))
    assert caught.value.exit_code is ExitCode.USAGE


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(BadProfile, match="no such file"):
        load_profile(str(tmp_path / "none.toml"))
    (tmp_path / "noise.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadProfile, match="is not text"):
        load_profile(str(tmp_path / "noise.toml"))
    (tmp_path / "large.json").write_text("[" * (1024**2 + 1))
    with pytest.raises(BadProfile, match="larger than any profile"):
        load_profile(str(tmp_path / "large.json"))
    (tmp_path / "deep.json").write_text("[" * 200_000)
    with pytest.raises(BadProfile, match="cannot be read"):
        load_profile(str(tmp_path / "deep.json"))


def test_an_ambiguous_card_in_a_file_lists_the_candidates(tmp_path: Path) -> None:
    (tmp_path / "box.toml").write_text('[[gpu]]\ncard = "a100"\n')
    with pytest.raises(AmbiguousGpu, match="a100pcie40gb, a100pcie80gb"):
        load_profile(str(tmp_path / "box.toml"))


# ---- saved hosts


@pytest.mark.parametrize("name", ["h200-vm", "dual-3090", "kubernetes-v2", "hybrid-laptop", "apple-m3-max"])
def test_a_saved_host_comes_back_whole(name: str, host: Callable[..., HostFacts], tmp_path: Path) -> None:
    original = host(name)
    save_profile(original, "my-server", folder=tmp_path)
    assert load_profile("my-server", folder=tmp_path) == original


def test_saved_names_never_mean_something_else(host: Callable[..., HostFacts], tmp_path: Path) -> None:
    for name in ("rtx4070", "h200", "a100", "g5.xlarge"):
        with pytest.raises(BadProfile, match="already means a machine"):
            save_profile(host("h200-vm"), name, folder=tmp_path)
    for name in ("../x", "", "a/b", ".hidden", "x" * 65):
        with pytest.raises(BadProfile, match="a name has letters"):
            save_profile(host("h200-vm"), name, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("quantplan_profile",), 2, "only version 1 is known"),
        (("host", "colour"), "red", "unknown key 'colour'"),
        (("host", "cpu", "speed"), 1, "host.cpu: unknown key 'speed'"),
        (("host", "ram"), 7, "host.ram: must be a table"),
        (("host", "ram", "total_bytes"), -1, "ram.total: impossible: -1"),
        (("host", "ram", "total_bytes"), "many", "ram.total: impossible: 'many'"),
    ],
)
def test_a_damaged_saved_host(
    path: tuple[str, ...], value: object, said: str, host: Callable[..., HostFacts], tmp_path: Path
) -> None:
    file = save_profile(host("dual-3090"), "box", folder=tmp_path)
    document = json.loads(file.read_text())
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    file.write_text(json.dumps(document))
    with pytest.raises(BadProfile, match=said):
        load_profile("box", folder=tmp_path)


# ---- the reference


def test_the_reference_is_what_the_data_says() -> None:
    import runpy

    root = Path(__file__).parents[2]
    filled = runpy.run_path(str(root / "scripts" / "hardware_docs.py"))["filled"]
    text = (root / "docs" / "hardware.md").read_text()
    assert filled(text) == text


def test_the_profile_of_the_reference_is_read(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "hardware.md").read_text()
    (tmp_path / "box.toml").write_text(text.split("```toml\n", 1)[1].split("```", 1)[0])
    host = load_profile(str(tmp_path / "box.toml"))
    assert [gpu.name for gpu in host.gpus] == ["CUDA0", "CUDA1", "ROCm0"]
    assert host.ram.available_bytes == 120 * GIB


def test_every_check_is_in_the_reference() -> None:
    from quantplan.hardware.doctor import CHECKS

    text = (Path(__file__).parents[2] / "docs" / "hardware.md").read_text().split("## The doctor's checks")[1]
    rows = [row.split("|")[1] for row in text.splitlines() if row.startswith("| ") and "---" not in row]
    told = [name.strip() for row in rows for name in row.split(",")]
    assert sorted(set(told) - {"check"}) == sorted(CHECKS)


def test_every_row_of_the_tables_has_a_source_and_says_whether_it_was_seen_there() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads TOML; the table is the same everywhere")
    corrections = tomllib.loads(data_file("gpu_corrections.toml").read_text())["card"]
    for row in corrections:
        kind = "driver_memory_" if "driver_memory_mib" in row else ""
        assert row[f"{kind}source"].startswith(("http", "tests/data/")), row
        assert row[f"{kind}checked"] in (True, False), row
        if not kind:
            assert all_specs()[row["name"]].checked is row["checked"]
            assert all_specs()[row["name"]].source == row["source"]
    for name, instance in cloud_instances().items():
        assert instance["source"].startswith("http") and instance["checked"] in (True, False), name
        assert instance["gpu_source"].startswith("http") if instance["checked"] else "gpu_source" not in instance


def test_a_row_that_nobody_confirmed_is_a_warning() -> None:
    unconfirmed = "the figures of {} are not confirmed against a public source"
    assert unconfirmed.format("Apple M5") in load_profile("m5+32GB").warnings
    assert unconfirmed.format("p5.4xlarge") in load_profile("p5.4xlarge").warnings
    assert not any("not confirmed" in text for text in load_profile("h200+64GB").warnings)
    assert load_profile("g5.xlarge").warnings == ()
