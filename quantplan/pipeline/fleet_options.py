"""What a build file says of one build, beside its model and preset, as words for `quantplan build`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from quantplan.errors import BadFleet
from quantplan.pipeline.fleet_keys import Fields, near_names

_NAME = re.compile(r"[\w.\-]+", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """As `quantplan build` has them. Files are absolute or from where the build file was named from."""

    texts: tuple[str, ...] = ()
    chunks: int | None = None
    calibration: Path | None = None
    calibration_chunks: int | None = None
    imatrix: Path | None = None
    outtype: str | None = None
    mmproj: bool | None = None
    tensor_types: tuple[str, ...] = ()
    tensor_type_file: Path | None = None
    output_tensor_type: str | None = None
    token_embedding_type: str | None = None
    leave_output_tensor: bool = False
    pure: bool = False
    split_max_size: str | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False

    def words(self) -> Iterator[str]:
        """The options as `quantplan build` takes them."""
        for text in self.texts:
            yield from ("--text", text)
        for word in self.tensor_types:
            yield from ("--tensor-type", word)
        named = ("chunks", "calibration", "calibration_chunks", "imatrix", "outtype", "tensor_type_file",
                 "output_tensor_type", "token_embedding_type", "split_max_size")  # fmt: skip
        for name in named:
            value = getattr(self, name)
            if value is not None:
                yield from (f"--{name.replace('_', '-')}", str(value))
        if self.mmproj is not None:
            yield "--mmproj" if self.mmproj else "--no-mmproj"
        for name in ("leave_output_tensor", "pure", "trust_remote_code", "allow_pickle"):
            if getattr(self, name):
                yield f"--{name.replace('_', '-')}"

    def files(self) -> tuple[Path, ...]:
        """Files of this machine that a build reads."""
        texts = [Path(text.partition("=")[2] or text) for text in self.texts]
        return tuple(p for p in (*texts, self.calibration, self.imatrix, self.tensor_type_file) if p is not None)


def read_options(fields: Fields, folder: Path) -> BuildOptions:
    """Raises BadFleet for a value of another kind or a file that is not there."""
    return BuildOptions(
        texts=tuple(_text(fields, text, folder) for text in fields.texts("texts")),
        chunks=fields.number("chunks"), calibration=fields.file("calibration"),
        calibration_chunks=fields.number("calibration_chunks"), imatrix=fields.file("imatrix"),
        outtype=fields.choice("outtype", ("bf16", "auto", "f16", "f32")), mmproj=fields.maybe("mmproj"),
        tensor_types=fields.texts("tensor_types"), tensor_type_file=fields.file("tensor_type_file"),
        output_tensor_type=fields.text("output_tensor_type"),
        token_embedding_type=fields.text("token_embedding_type"),
        leave_output_tensor=fields.flag("leave_output_tensor"), pure=fields.flag("pure"),
        split_max_size=fields.text("split_max_size"), trust_remote_code=fields.flag("trust_remote_code"),
        allow_pickle=fields.flag("allow_pickle"),
    )  # fmt: skip


def _text(fields: Fields, text: str, folder: Path) -> str:
    name, mark, rest = text.rpartition("=")
    path = folder / Path(rest).expanduser()
    if not path.is_file():
        raise fields.bad("texts", f"{rest}: no such file")
    return f"{name}{mark}{path}"


def model_and_name(path: Path, where: str, model: str) -> tuple[str, str]:
    """A model as `build` takes it, and the name of its artifacts. A folder is found from the build file's."""
    from quantplan.model import catalog
    from quantplan.model.model_name import hub_name

    folder = path.parent / Path(model).expanduser()
    if folder.is_dir():
        name = folder.resolve().name
        if not _NAME.fullmatch(name):
            raise BadFleet(path=path, where=where, why=f"the folder's name {name!r} is no name for an artifact")
        return str(folder.resolve()), name
    entry = catalog.find(model)
    if entry is not None:
        return entry.id, entry.id.rpartition("/")[2]
    found = hub_name(model)
    if found is None or found.quant or found.file:
        why = f"{model!r} is no model to build from: not a folder, not a catalog name, not org/name[@revision]"
        raise BadFleet(path=path, where=where, why=why, near=catalog.near(model))
    return model, found.repo.rpartition("/")[2]


def checked_preset(path: Path, where: str, given: str) -> str:
    """A preset's own name. Raises BadFleet naming near ones."""
    from quantplan.quant.presets import PRESETS

    name = given.upper()
    if name not in PRESETS:
        why = f"{given!r} is no preset of llama-quantize"
        raise BadFleet(path=path, where=where, why=why, near=near_names(name, PRESETS))
    return PRESETS[name].file_type
