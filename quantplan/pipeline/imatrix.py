"""The importance matrix: computed from a calibration text, or given; and what it holds no data of."""

from __future__ import annotations

import re
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

from quantplan.artifact.receipt import FileEntry
from quantplan.errors import BadModelFile, ToolFailed
from quantplan.llama import commands, output
from quantplan.llama.process import Runner
from quantplan.llama.types import Completed
from quantplan.model.byte_window import FileSource
from quantplan.model.facts import TensorFacts
from quantplan.model.gguf_header import GgufHeader, parse_gguf_header, read_gguf_header
from quantplan.pipeline.evaluate import TextTooShort
from quantplan.pipeline.files import move_into_place
from quantplan.pipeline.request import Workplace
from quantplan.pipeline.schedule import CONVERTED, IMATRIX
from quantplan.pipeline.steps import Step, shown

COVERAGE = "coverage"  # the record's name for what follows
DATASETS, CHUNKS = "imatrix.datasets", "imatrix.chunk_count"  # common/common.h: LLM_KV_IMATRIX_*
_SUMS, _COUNTS = ".in_sum2", ".counts"  # tools/imatrix/imatrix.cpp, save_imatrix()
_TOO_SHORT = re.compile(r"you need at least (\d+) tokens")
_HAS = re.compile(r"tokenizes to only (\d+) tokens")
_OF_CHUNKS = re.compile(r"computing over (\d+) chunks")


def settings_of(work: Workplace) -> commands.ImatrixSettings:
    """As many threads and layers on the GPU as the evaluation uses."""
    own = work.request.settings
    return commands.ImatrixSettings(
        n_chunks=work.request.calibration_chunks, n_threads=own.n_threads, n_gpu_layers=own.n_gpu_layers
    )


def imatrix_step(work: Workplace, converted: FileEntry) -> Step:
    """llama-imatrix in the work folder, with names that depend on content alone: they are written into the GGUF."""
    text = work.request.calibration
    assert text is not None
    entry = calibration_entry(work)
    assert entry is not None
    name = work.file_name(IMATRIX)
    settings = settings_of(work)
    argv = commands.imatrix(
        work.request.tools.programs["llama-imatrix"], Path(work.file_name(CONVERTED)), Path(entry.name),
        Path(name + ".partial"), settings,
    )  # fmt: skip
    link = work.folder / entry.name

    def attempt(_partial: Path, run: Runner) -> Completed:
        link.unlink(missing_ok=True)
        link.symlink_to(text.resolve())
        try:
            completed = run(argv, step="imatrix", extra_env={"OMP_WAIT_POLICY": "passive"}, check=False)
        finally:
            link.unlink(missing_ok=True)
        if completed.returncode != 0:
            _refuse(completed, text, n_tokens=count(run), n_ctx=settings.n_ctx)
        return completed

    def count(run: Runner) -> int | None:
        """Of the calibration text; None without the tool for it, or where its last line was lost."""
        program = work.request.tools.programs.get("llama-tokenize")
        if program is None:
            return None
        counting = commands.count_tokens(program, Path(work.file_name(CONVERTED)), text.resolve())
        counted = run(counting, step="count the calibration text's tokens", check=False)
        return output.parse_token_count((*counted.stdout, *counted.stderr))

    # The bytes do not depend on the number of threads: it is left out of what the step is keyed by.
    return Step(
        name="imatrix", argv=argv, shown_argv=without_threads(shown(argv, folder=work.folder)),
        inputs=(converted, entry), output=name, tool_build=tool_build(work), attempt=attempt,
        verify=verify_imatrix, progress=_progress(),
    )  # fmt: skip


def tool_build(work: Workplace) -> str:
    """The tools, with what they were built with."""
    tools = work.request.tools
    return " ".join((tools.build.label, tools.backend, *tools.options))


def without_threads(argv: tuple[str, ...]) -> tuple[str, ...]:
    """argv without the number of threads, which no result depends on."""
    kept, skip = [], False
    for word in argv:
        if not skip and word not in ("--threads", "--threads-batch"):
            kept.append(word)
        skip = word in ("--threads", "--threads-batch")
    return tuple(kept)


def calibration_entry(work: Workplace) -> FileEntry | None:
    """The calibration text under a name made of its content."""
    if work.request.calibration is None:
        return None
    entry = work.record.entry(work.request.calibration.resolve())
    return FileEntry(name=f"calibration-{entry.sha256[:8]}.txt", sha256=entry.sha256, bytes=entry.bytes)


def _refuse(completed: Completed, text: Path, *, n_tokens: int | None, n_ctx: int) -> NoReturn:
    """What is wrong when llama-imatrix failed: it loses its last sentence, so a short text is counted as well."""
    said = "\n".join((*completed.stdout, *completed.stderr))
    has = _HAS.search(said)
    n_tokens = int(has[1]) if has else n_tokens
    if _TOO_SHORT.search(said) or (n_tokens is not None and n_tokens < 2 * n_ctx):
        raise TextTooShort(text=text.name, n_tokens=n_tokens, need=2 * n_ctx)
    raise ToolFailed(
        step="imatrix", argv=completed.argv, returncode=completed.returncode, last_lines=completed.last_lines
    )


def _progress() -> Callable[[str], str | None]:
    total: list[str] = []

    def progress(text: str) -> str | None:
        if found := _OF_CHUNKS.search(text):
            total[:] = [found[1]]
        done = output.perplexity_progress(text)
        return f"{done} of {total[0] if total else '?'} chunks" if done is not None else None

    return progress


def verify_imatrix(path: Path) -> None:
    """Raises BadModelFile when the file is no importance matrix with data."""
    coverage(path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """What an importance matrix has data of. `without_data` names tensors, and experts as `tensor[12]`."""

    n_chunks: int
    n_entries: int
    without_data: tuple[str, ...]


def coverage(path: Path, tensors: tuple[TensorFacts, ...] = ()) -> Coverage:
    """Reads the counts of an importance matrix in GGUF form. `tensors` are those that will be quantized with it:
    a block's matrix that the matrix does not name at all is without data too.

    Raises BadModelFile.
    """
    with FileSource(path) as source:
        header = parse_gguf_header(source)
        if header.metadata.get("general.type") != "imatrix" or CHUNKS not in header.metadata:
            raise BadModelFile(path=path, why="is no importance matrix")
        lacking = list(_uncounted(path, header))
    named = {t.name.removesuffix(_COUNTS) for t in header.tensors if t.name.endswith(_COUNTS)}
    lacking += [t.name for t in tensors if t.name not in named and _is_counted(t)]
    chunks = header.metadata[CHUNKS]
    return Coverage(
        n_chunks=chunks if isinstance(chunks, int) else 0, n_entries=len(named), without_data=tuple(lacking)
    )


def _is_counted(tensor: TensorFacts) -> bool:
    """Matrices of blocks are what llama-imatrix watches; norms, biases and the embedding it never sees."""
    return tensor.name.startswith("blk.") and tensor.name.endswith(".weight") and len(tensor.shape) > 1


def _uncounted(path: Path, header: GgufHeader) -> Iterator[str]:
    with path.open("rb") as file:
        for tensor in header.tensors:
            if not tensor.name.endswith(_COUNTS):
                continue
            file.seek(header.data_offset + tensor.offset)
            counts = struct.unpack(f"<{tensor.n_bytes // 4}f", file.read(tensor.n_bytes))
            name = tensor.name.removesuffix(_COUNTS)
            missing = [i for i, count in enumerate(counts) if count == 0]
            yield from ([name] if len(missing) == len(counts) else [f"{name}[{i}]" for i in missing])


def keep_coverage(work: Workplace, matrix: FileEntry) -> None:
    """Keeps what the matrix has no data of, and says it."""
    header = read_gguf_header(work.path(CONVERTED))
    tensors = tuple(TensorFacts(name=t.name, shape=t.shape, type_name=t.type_name) for t in header.tensors)
    found = coverage(work.path(IMATRIX), tensors)
    work.record.keep(COVERAGE, matrix.sha256, asdict(found))
    if found.without_data:
        work.tell("imatrix", without_data_sentence(found.without_data))


def without_data_sentence(names: Sequence[str]) -> str:
    """Which tensors and experts the calibration text never reached."""
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"the importance matrix has no data for {', '.join(names[:8])}{more}: quantized as without a matrix"


def take_given(given: Path, target: Path) -> None:
    """Copies an importance matrix into the work folder, without the local paths that it may name.

    Raises BadModelFile for a file in the old format or of another kind.
    """
    with FileSource(given) as source:
        header = parse_gguf_header(source)
    if header.metadata.get("general.type") != "imatrix":
        raise BadModelFile(path=given, why="is no importance matrix in GGUF form")
    datasets = header.metadata.get(DATASETS)
    partial = target.with_name(target.name + ".partial")
    if isinstance(datasets, tuple) and any("/" in str(name) or "\\" in str(name) for name in datasets):
        _rewritten(given, partial, header.metadata, [re.split(r"[/\\]", str(name))[-1] for name in datasets])
    else:
        shutil.copyfile(given, partial)
    move_into_place(partial, target)


def _rewritten(given: Path, target: Path, metadata: Mapping[str, object], datasets: list[str]) -> None:
    import gguf

    reader = gguf.GGUFReader(given)
    writer = gguf.GGUFWriter(target, arch="")
    writer.kv_data[0].clear()
    writer.add_type("imatrix")
    writer.add_array(DATASETS, datasets)
    for key in (CHUNKS, "imatrix.chunk_size"):
        value = metadata.get(key)
        writer.add_uint32(key, value if isinstance(value, int) else 0)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
