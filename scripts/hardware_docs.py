"""Writes the generated tables of docs/hardware.md (short names, cloud instances) between their markers.

python scripts/hardware_docs.py
"""

from __future__ import annotations

import re
from pathlib import Path

from quantplan.hardware.gpu_table import short_name, short_names
from quantplan.hardware.profiles import cloud_instances
from quantplan.units import GIB

DOC = Path(__file__).resolve().parent.parent / "docs" / "hardware.md"
# Cards people ask for; every other card of data/gpus.json is found by its own name without blanks in the same way.
SHOWN = (
    "rtx5090", "rtx5080", "rtx5070ti", "rtx5070", "rtx5060ti16gb", "rtx5060", "rtx4090", "rtx4080super",
    "rtx4070tisuper", "rtx4070super", "rtx4070", "rtx4070mobile", "rtx4060ti16gb", "rtx4060", "rtx3090ti",
    "rtx3090", "rtx3080", "rtx3060", "gtx1080ti", "rtx2080ti", "rtxa6000", "rtxpro6000", "l4", "a10g", "l40s",
    "t4", "a100pcie40gb", "a100pcie80gb", "a100sxm440gb", "a100sxm480gb", "h100", "h100nvl94gb", "h200", "b200",
    "gh200", "p40", "v100sxm232gb", "rx9070xt", "rx7900xtx", "rx6800xt", "mi300x", "mi250x", "strixhalo",
    "arcb580", "arca770", "m1", "m2max", "m3ultra", "m4", "m4pro", "m4max32core", "m4max40core", "m5", "spark",
    "orin", "thor",
)  # fmt: skip


def card_rows() -> list[str]:
    from quantplan.hardware.gpu_table import find_gpu

    rows = []
    for name in SHOWN:
        spec = find_gpu(name)
        memory = f"{'up to ' * spec.unified}{spec.memory_bytes / GIB:g} GB"
        rows.append(f"| `{name}` | {spec.name} | {memory} | {spec.bandwidth_bytes_per_s / 1e9:,.0f} |")
    return ["| name | card | memory | GB/s |", "|---|---|---|---|", *rows]


def short_rows() -> list[str]:
    rows = [f"| `{short}` | {card} | `{short_name(card)}` |" for short, card in sorted(short_names().items())]
    return ["| short name | means | its own name |", "|---|---|---|", *rows]


def cloud_rows() -> list[str]:
    rows = [
        f"| `{row['name']}` | {row['n_gpus']} x {row['gpu']} | {row['n_vcpus']} | {row['ram_gib']} GiB |"
        for row in cloud_instances().values()
    ]
    return ["| instance | GPUs | vCPUs | RAM |", "|---|---|---|---|", *rows]


def filled(text: str) -> str:
    """The document with its generated parts as the data says now."""
    for name, rows in (("cards", card_rows()), ("short", short_rows()), ("cloud", cloud_rows())):
        block = f"<!-- {name} -->\n" + "\n".join(rows) + f"\n<!-- /{name} -->"
        text, found = re.subn(rf"<!-- {name} -->.*?<!-- /{name} -->", lambda _, b=block: b, text, flags=re.DOTALL)
        if found != 1:
            raise SystemExit(f"docs/hardware.md has no part {name}")
    return text


if __name__ == "__main__":
    DOC.write_text(filled(DOC.read_text(encoding="utf-8")), encoding="utf-8")
