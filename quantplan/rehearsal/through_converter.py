"""Facts of a checkpoint whose architecture our tables do not know: the pinned converter's own classes are asked.

They run in a process of their own on the checkpoint's configuration and on a safetensors header over a hole: nothing
is downloaded but headers, and no weight is read.
"""

from __future__ import annotations

import json
import struct
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from quantplan.errors import ToolMissing
from quantplan.llama.fetch import missing_converter_modules
from quantplan.llama.process import Runner, run_tool
from quantplan.llama.toolchain import converter_script
from quantplan.model.facts import FactsOrigin, ModelFacts, TensorFacts
from quantplan.model.gguf_facts import facts_from_metadata
from quantplan.model.gguf_header import read_gguf_header
from quantplan.model.resolve import CheckpointModel
from quantplan.model.safetensors_header import SafetensorsTensor
from quantplan.rehearsal.holes import holes_folder, require_holes

_PROGRAM = Path(__file__).with_name("converter_process.py")
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def converter_tree(*, lacking: Callable[[], Sequence[str]] = missing_converter_modules) -> Path:
    """The folder of the pinned converter. Raises ToolMissing without it, or without what it imports."""
    script = converter_script(None)
    if script is None:
        raise ToolMissing(tool="convert_hf_to_gguf.py", why="is not here: it comes with the pinned toolchain")
    if modules := lacking():
        raise ToolMissing(tool="the build extra", why=f"is not installed: Python lacks {', '.join(modules)}")
    return script.parent


def facts_through_converter(found: CheckpointModel, *, tree: Path, run: Runner = run_tool) -> ModelFacts:
    """The facts that the converter's header gives. Raises ToolFailed (with its last lines) for what it refuses, and
    HolesFilled where the cache's folder keeps no holes."""
    assert found.tensors is not None, "a configuration alone has no tensors to convert"
    place = holes_folder()
    require_holes(place)
    with tempfile.TemporaryDirectory(dir=place, prefix="convert-") as name:
        folder, output = Path(name), Path(name) / "converted.gguf"
        (folder / "config.json").write_text(json.dumps(found.config), encoding="utf-8")
        write_safetensors_hole(folder / "model.safetensors", found.tensors)
        argv = (sys.executable, str(_PROGRAM), str(folder), str(output), "--tree", str(tree))
        run(argv, step="ask the converter", timeout_s=300, extra_env=_OFFLINE)
        header = read_gguf_header(output)
    tensors = tuple(TensorFacts(name=t.name, shape=t.shape, type_name=t.type_name) for t in header.tensors)
    return facts_from_metadata(
        header.metadata, tensors, id=found.id, origin=FactsOrigin.SAFETENSORS_HEADERS, source=found.source,
        licence=found.licence, has_chat_template=found.has_chat_template,
        warnings=(*found.warnings, f"{found.id}: read through the converter's own classes"),
    )  # fmt: skip


def write_safetensors_hole(path: Path, tensors: Sequence[SafetensorsTensor]) -> None:
    """A safetensors file with these tensors whose data is a hole."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.n_bytes
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)


def read_any_model(model: str) -> ModelFacts:
    """read_model; for a checkpoint of an architecture that our tables do not know, the converter's word, if it is here.

    Raises what read_model raises, and ToolFailed where the converter refuses it too.
    """
    from quantplan.errors import UnsupportedArchitecture
    from quantplan.model import catalog
    from quantplan.model.read import facts_of
    from quantplan.model.resolve import Catalog, resolve_model

    found = resolve_model(model, catalog=Catalog(find=catalog.find, near=catalog.near))
    try:
        return facts_of(found)
    except UnsupportedArchitecture:
        if not isinstance(found, CheckpointModel) or found.tensors is None:
            raise
        try:
            tree = converter_tree()
        except ToolMissing:
            tree = None
        if tree is None:
            raise
        return facts_through_converter(found, tree=tree)
