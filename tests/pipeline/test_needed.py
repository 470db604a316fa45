"""Which files are taken, and which only with a yes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import pytest

from quantplan.errors import BadModelFile, PickleWeights, RemoteCode
from quantplan.pipeline.needed import needed_files


class Files:
    """A checkpoint in memory."""

    name = "org/m"

    def __init__(self, files: Mapping[str, object]) -> None:
        self._files = {name: value if isinstance(value, bytes) else json.dumps(value).encode()
                       for name, value in files.items()}  # fmt: skip

    def names(self) -> Sequence[str]:
        return tuple(self._files)

    def read(self, name: str, *, max_bytes: int) -> bytes:
        return self._files[name]

    def safetensors_headers(self, files: Mapping[str, int | None]) -> Mapping[str, tuple[()]]:
        return dict.fromkeys(files, ())


PLAIN = {"config.json": {}, "tokenizer.json": {}, "model.safetensors": b"x"}


def test_only_what_the_converter_reads() -> None:
    more = {
        "README.md": b"", "LICENSE": b"", "logo.png": b"", "onnx/model.onnx": b"", "pytorch_model.bin": b"",
        "consolidated.safetensors": b"", "original/params.json": {}, "tokenizer_config.json": {}, "merges.txt": b"",
        "additional_chat_templates/tool_use.jinja": b"", "preprocessor_config.json": {}, "flax_model.msgpack": b"",
        "qwen.tiktoken": b"", "eval/results.json": {},
    }  # fmt: skip
    found = needed_files(Files({**PLAIN, **more}))
    assert found.weights == ("model.safetensors",)
    assert set(found.small) == {
        "config.json", "tokenizer.json", "README.md", "tokenizer_config.json", "merges.txt",
        "additional_chat_templates/tool_use.jinja", "preprocessor_config.json", "qwen.tiktoken",
    }  # fmt: skip
    assert (found.code, found.weights_are_pickled) == ((), False)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "processor_config.json"])
def test_auto_map_anywhere_is_code(name: str) -> None:
    told = {"auto_map": {"AutoTokenizer": ["org/other--tok.Tok", None]}}
    with pytest.raises(RemoteCode, match=rf"org/m: {name} \(auto_map\) asks for Python code .*\(org/other--tok\.py\)"):
        needed_files(Files({**PLAIN, name: told}))
    assert needed_files(Files({**PLAIN, name: told}), allow_code=True).code == ()


def test_code_that_is_allowed_is_fetched_too() -> None:
    files = Files({**PLAIN, "config.json": {"auto_map": {"AutoConfig": "conf.C"}}, "conf.py": b"", "sub/x.py": b""})
    assert needed_files(files, allow_code=True).code == ("conf.py", "sub/x.py")


def test_pickles_are_taken_when_allowed_and_never_beside_safetensors() -> None:
    pickled: dict[str, object] = {"config.json": {}, "tokenizer.json": {}}
    pickled |= {f"pytorch_model-0000{i}-of-00002.bin": b"" for i in (1, 2)}
    with pytest.raises(PickleWeights, match=r"its weights are pickled \(pytorch_model-00001-of-00002\.bin, "):
        needed_files(Files(pickled))
    found = needed_files(Files(pickled), allow_pickle=True)
    assert found.weights_are_pickled
    assert len(found.weights) == 2
    index = "pytorch_model.bin.index.json"
    good = {"weight_map": {"a": "pytorch_model-00001-of-00002.bin"}}
    assert index in needed_files(Files({**pickled, index: good}), allow_pickle=True).small
    for part in ("../../etc/passwd", "/etc/passwd", "other.bin"):
        with pytest.raises(BadModelFile, match="is not a weight file of this model"):
            needed_files(Files({**pickled, index: {"weight_map": {"a": part}}}), allow_pickle=True)


@pytest.mark.parametrize(
    ("lacks", "says"),
    [("tokenizer.json", "has no tokenizer"), ("model.safetensors", r"no \*\.safetensors weights \(it has m\.gguf\)")],
)
def test_what_lacks_is_named(lacks: str, says: str) -> None:
    files = {name: value for name, value in PLAIN.items() if name != lacks}
    with pytest.raises(BadModelFile, match=says):
        needed_files(Files({**files, "m.gguf": b""}))
