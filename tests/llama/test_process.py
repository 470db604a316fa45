"""The clean room and the one door to subprocesses, with real processes."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from quantplan.errors import ToolFailed
from quantplan.llama.process import clean_environment, run_tool, start_tool, stop_tool


def test_clean_environment_drops_what_fills_unwritten_flags() -> None:
    planted = {
        "LLAMA_ARG_CTX_SIZE": "256", "LLAMA_API_KEY": "k", "GGML_CUDA_DISABLE_FUSION": "1", "OMP_NUM_THREADS": "1",
        "KMP_BLOCKTIME": "0", "HF_TOKEN": "t", "XDG_CONFIG_HOME": "/planted", "PATH": "/bin", "HOME": "/home/u",
        "CUDA_VISIBLE_DEVICES": "1",
    }  # fmt: skip
    env = clean_environment(planted)
    assert {key for key in env if key in planted} == {"PATH", "HOME", "CUDA_VISIBLE_DEVICES", "XDG_CONFIG_HOME"}
    assert env["GGML_NO_BACKTRACE"] == "1"
    config = Path(env["XDG_CONFIG_HOME"])
    assert config.is_dir()
    assert list(config.iterdir()) == []


def test_run_returns_lines_time_and_peak_memory() -> None:
    code = "import sys; x = b'a' * 50_000_000; print('one'); print('two', end=''); print('err', file=sys.stderr)"
    completed = run_tool((sys.executable, "-c", code), step="try")
    assert completed.stdout == ("one", "two")
    assert completed.stderr == ("err",)
    assert completed.peak_rss_bytes is not None
    assert 50_000_000 < completed.peak_rss_bytes < 500_000_000


def test_failure_names_the_step_and_shows_the_last_lines() -> None:
    code = "import sys; [print(f'line {i}', file=sys.stderr) for i in range(20)]; sys.exit(3)"
    with pytest.raises(ToolFailed) as caught:
        run_tool((sys.executable, "-c", code), step="quantize Q4_K_M")
    assert str(caught.value).startswith("quantize Q4_K_M: ")
    assert "ended with status 3" in str(caught.value)
    assert caught.value.last_lines[-1] == "line 19"


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(ToolFailed, match="could not be started"):
        run_tool(("/nonexistent/llama-quantize",), step="quantize")


def test_a_program_that_outlives_its_limit_is_ended() -> None:
    started = time.monotonic()
    with pytest.raises(ToolFailed) as caught:
        run_tool((sys.executable, "-c", "import time; time.sleep(60)"), step="wait", timeout_s=0.5)
    assert time.monotonic() - started < 20
    assert caught.value.returncode == 124


def test_stopping_ends_the_whole_group() -> None:
    child = start_tool(("/bin/sh", "-c", "sleep 60 & echo $!; wait"), step="group")
    assert child.stdout is not None
    grandchild = int(child.stdout.readline())
    stop_tool(child)
    child.stdout.close()
    assert child.stderr is not None
    child.stderr.close()
    for _ in range(50):
        status = Path(f"/proc/{grandchild}/status")
        if not status.exists() or "State:\tZ" in status.read_text():
            return
        time.sleep(0.1)
    pytest.fail("the grandchild still runs")


@pytest.mark.tools
def test_planted_settings_change_nothing(toolchain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Environment and configuration file are both planted; run bare they change the scores, in our room they don't."""
    import os
    import subprocess

    from quantplan.llama import commands
    from quantplan.llama.self_test import write_tiny_model

    model, text = tmp_path / "tiny.gguf", tmp_path / "text.txt"
    write_tiny_model(model)
    text.write_text("abcdefgh " * 64)
    settings = commands.EvalSettings(n_ctx=64, n_batch=64, n_ubatch=64, n_chunks=2, n_threads=2)

    def argv(name: str) -> tuple[str, ...]:
        program = toolchain.programs["llama-perplexity"]
        return commands.save_logits(program, model, text, tmp_path / name, settings)

    run_tool(argv("clean"), step="clean")
    config = tmp_path / "config" / "llama.cpp"
    config.mkdir(parents=True)
    (config / "config.ini").write_text("[*]\nrope-freq-base = 100\n")
    for name, planted in (
        ("env", {"LLAMA_ARG_ROPE_FREQ_BASE": "100"}),
        ("file", {"XDG_CONFIG_HOME": str(config.parent)}),
    ):
        for key, value in planted.items():
            monkeypatch.setenv(key, value)
        subprocess.run(argv(f"bare-{name}"), env={**os.environ, **planted}, check=True, capture_output=True)
        run_tool(argv(f"room-{name}"), step="room")
        for key in planted:
            monkeypatch.delenv(key)
        assert (tmp_path / f"bare-{name}").read_bytes() != (tmp_path / "clean").read_bytes(), name
        assert (tmp_path / f"room-{name}").read_bytes() == (tmp_path / "clean").read_bytes(), name


def test_a_tool_dies_with_the_process_that_waits_for_it(tmp_path: Path) -> None:
    """SIGKILL to quantplan alone: the tool must not go on writing."""
    import os
    import signal
    import subprocess

    tool = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    code = (
        "import sys; from quantplan.llama.process import run_tool\n"
        f"run_tool((sys.executable, '-c', {tool!r}), step='x')"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    pid_file = tmp_path / "pid"
    for _ in range(500):
        if pid_file.exists() and pid_file.read_text():
            break
        time.sleep(0.02)
    pid = int(pid_file.read_text())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    for _ in range(250):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        if "State:\tZ" in Path(f"/proc/{pid}/status").read_text():  # dead, and nobody has asked for its status
            return
        time.sleep(0.02)
    raise AssertionError("the tool outlived its parent")
