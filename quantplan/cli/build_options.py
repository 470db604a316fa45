"""The options of `quantplan build`, in the order of its help."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])
_FILE = click.Path(path_type=Path, dir_okay=False)

_OPTIONS = (
    click.option("--quant", "quants", multiple=True, metavar="PRESET",
                 help="A preset of llama-quantize; may be given several times. Default: the plan's, else Q4_K_M."),
    click.option("--plan", "plan_file", type=_FILE, metavar="FILE",
                 help="Build what this plan says (recommend --save); it becomes the plan.json of its preset."),
    click.option("--output", type=click.Path(path_type=Path, file_okay=False), default=Path("artifacts"),
                 show_default=True, help="Folder of the artifact folders, one a preset: <name>-<QUANT>/."),
    click.option("--text", "texts", multiple=True, metavar="[NAME=]FILE",
                 help="Evaluate on this text instead of the five that ship; may be given several times."),
    click.option("--chunks", type=click.IntRange(2, 10_000), default=20, show_default=True,
                 help="Windows of 512 tokens a text."),
    click.option("--calibration", type=_FILE, metavar="FILE",
                 help="Compute an importance matrix from this text and quantize with it."),
    click.option("--calibration-chunks", type=click.IntRange(1), metavar="N",
                 help="Windows of 512 tokens of the calibration text; all of them where not given."),
    click.option("--imatrix", type=_FILE, metavar="FILE", help="Quantize with this importance matrix (GGUF)."),
    click.option("--outtype", type=click.Choice(("bf16", "auto", "f16", "f32")), default="bf16", show_default=True,
                 help="Type of the converted file that presets are made from and judged against."),
    click.option("--mmproj/--no-mmproj", default=None,
                 help="Convert the projector of a vision or audio model too; by default where there is one."),
    click.option("--tensor-type", "tensor_types", multiple=True, metavar="NAME=TYPE",
                 help="Quantize tensors whose names match to this type; may be given several times."),
    click.option("--tensor-type-file", type=_FILE, metavar="FILE", help="The same, from a file of NAME=TYPE words."),
    click.option("--output-tensor-type", metavar="TYPE", help="Type of output.weight."),
    click.option("--token-embedding-type", metavar="TYPE", help="Type of the token embeddings."),
    click.option("--leave-output-tensor", is_flag=True, help="Leave output.weight as converted."),
    click.option("--pure", is_flag=True, help="The preset's own type everywhere, no mixture."),
    click.option("--split-max-size", metavar="SIZE", help="Split results into files of at most SIZE (48GB, 2G)."),
    click.option("--disk", type=click.Choice(("auto", "fast", "tight", "remote")), default="auto", show_default=True,
                 help="tight deletes every intermediate once it is used up; remote also reads the weights from the "
                      "hub, twice, and never stores them; auto does what the disk asks for."),
    click.option("--keep/--clean", "keep", default=True, show_default=True,
                 help="Keep or delete the intermediates afterwards (the 16-bit GGUF, Q8_0)."),
    click.option("--threads", type=click.IntRange(1), metavar="N", help="Threads of the tools; no byte depends on it."),
    click.option("--llama", type=click.Path(path_type=Path), help="Folder of the llama.cpp tools."),
    click.option("--trust-remote-code", is_flag=True, help="Let the conversion run the repository's own Python code."),
    click.option("--allow-pickle", is_flag=True,
                 help="Convert pickled weights (*.bin) where there are no safetensors."),
    click.option("--explain", is_flag=True, help="Say of every step why it runs or is skipped, and the disk plan."),
    click.option("--dry-run", is_flag=True, help="Say what would be done, and what is in the way; build nothing."),
    click.option("--status", is_flag=True, help="How far the builds in the output folder are; MODEL may be left out."),
)  # fmt: skip


def build_options(function: F) -> F:
    """All of them."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function
