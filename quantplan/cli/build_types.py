"""The options of `quantplan build` that change tensor types, sizes of files and the importance matrix."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from quantplan.errors import BadModelFile, BadValue

if TYPE_CHECKING:
    from quantplan.cli.build_request import Options
    from quantplan.llama.commands import TypeOverrides
    from quantplan.pipeline.evaluate import Corpus

_MAX_TYPE_FILE_BYTES = 10_000_000
_SMALLEST_SPLIT_BYTES = 1_000_000  # llama-gguf-split counts in whole decimal megabytes


def overrides(options: Options) -> TypeOverrides:
    """Tensor types as typed, checked as llama-quantize would check them. Raises BadValue, BadModelFile."""
    from quantplan.llama.commands import TypeOverrides

    listed = _from_file(options.tensor_type_file) if options.tensor_type_file else ()
    return TypeOverrides(
        tensor_types=tuple(_tensor_type(word) for word in (*options.tensor_types, *listed)),
        output_type=_type(options.output_tensor_type), embedding_type=_type(options.token_embedding_type),
        leave_output=options.leave_output_tensor, pure=options.pure,
    )  # fmt: skip


def _tensor_type(word: str) -> tuple[str, str]:
    name, mark, kind = word.partition("=")
    if not mark or not name or not kind:
        raise BadValue(what="tensor type", value=word, why="is not NAME=TYPE")
    try:
        re.compile(name)
    except re.error as error:
        raise BadValue(
            what="tensor type", value=word, why=f"has a name that is no regular expression ({error})"
        ) from error
    known = _type(kind)
    assert known is not None
    return name, known


def _type(name: str | None) -> str | None:
    from quantplan.quant.presets import known_type

    return known_type(name).lower() if name is not None else None


def _from_file(path: Path) -> Iterable[str]:
    """The words of a file for --tensor-type-file: NAME=TYPE, separated by blanks or lines."""
    try:
        if path.stat().st_size > _MAX_TYPE_FILE_BYTES:
            raise BadModelFile(path=path, why="is too large to be a list of tensor types")
        return path.read_text(encoding="utf-8").split()
    except FileNotFoundError:
        raise BadModelFile(path=path, why="no such list of tensor types") from None
    except UnicodeDecodeError as error:
        raise BadModelFile(path=path, why="is not UTF-8 text", offset=error.start) from error


def split_bytes(options: Options) -> int | None:
    """The largest size of a file of the result, or None for one file. Raises BadValue."""
    from quantplan.units import parse_size

    if options.split_max_size is None:
        return None
    try:
        size = parse_size(options.split_max_size)
    except ValueError:
        raise BadValue(what="size of a split", value=options.split_max_size, why="is no size") from None
    if size < _SMALLEST_SPLIT_BYTES:
        raise BadValue(what="size of a split", value=options.split_max_size, why="is less than 1 MB")
    return size


def check_matrix(options: Options, texts: tuple[Corpus, ...]) -> None:
    """Raises BadValue for two sources of a matrix or a text that is evaluated on too, BadModelFile for no file."""
    if options.imatrix is not None and options.calibration is not None:
        why = "and a calibration text were both given: the matrix is made from the text, or it is there"
        raise BadValue(what="an importance matrix", value=None, why=why)
    for path in (options.imatrix, options.calibration):
        if path is not None and not path.is_file():
            raise BadModelFile(path=path, why="no such file")
    if options.calibration is None:
        return
    content = options.calibration.read_bytes()
    for corpus in texts:
        if corpus.path.read_bytes() == content:
            why = f"is the evaluation text {corpus.name!r} too: a file judged on what it was tuned to would look better"
            raise BadValue(what="calibration text", value=str(options.calibration), why=why)
