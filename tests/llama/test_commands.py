"""Every flag of the plan is written, with its value."""

from __future__ import annotations

from pathlib import Path

from quantplan.llama import commands


def _settings(**changed: object) -> commands.ServerSettings:
    values: dict[str, object] = {
        "model": Path("m.gguf"), "alias": "m", "host": "127.0.0.1", "port": 8080, "n_ctx_per_slot": 4096,
        "n_parallel": 1, "kv_unified": False, "type_k": "f16", "type_v": "q8_0", "flash_attn": "on", "n_batch": 2048,
        "n_ubatch": 512, "n_gpu_layers": 33, "threads": 6, "threads_batch": 8, "cache_ram_mib": 0, "load_mode": "mmap",
        **changed,
    }  # fmt: skip
    return commands.ServerSettings(**values)  # type: ignore[arg-type]


def _value(argv: tuple[str, ...], flag: str) -> str:
    return argv[argv.index(flag) + 1]


def test_server_writes_every_setting() -> None:
    argv = commands.server(("llama-server",), _settings())
    expected = {
        "--model": "m.gguf", "--ctx-size": "4096", "--parallel": "1", "--cache-type-k": "f16",
        "--cache-type-v": "q8_0", "--flash-attn": "on", "--batch-size": "2048", "--ubatch-size": "512",
        "--n-gpu-layers": "33", "--threads": "6", "--threads-batch": "8", "--cache-ram": "0", "--load-mode": "mmap",
        "--fit": "off", "--host": "127.0.0.1", "--port": "8080",
    }  # fmt: skip
    assert {flag: _value(argv, flag) for flag in expected} == expected
    assert "--no-kv-unified" in argv
    assert "--kv-unified" not in argv


def test_several_slots_share_a_pool_with_a_limit_each() -> None:
    argv = commands.server(("llama-server",), _settings(n_parallel=3, kv_unified=True))
    assert _value(argv, "--ctx-size") == "12288"
    assert _value(argv, "--kv-unified-per-slot") == "4096"
    assert "--kv-unified-per-slot" not in commands.server(
        ("llama-server",), _settings(n_parallel=3, kv_unified=True), unified_per_slot=False
    )


def test_optional_settings_are_written_only_where_they_are_set() -> None:
    assert "--tensor-split" not in commands.server(("llama-server",), _settings())
    argv = commands.server(("llama-server",), _settings(tensor_split=(11.5, 23.0), n_cpu_moe=4, numa="numactl"))
    assert _value(argv, "--tensor-split") == "11.5,23"
    assert _value(argv, "--n-cpu-moe") == "4"
    assert _value(argv, "--numa") == "numactl"


def test_evaluation_pins_what_changes_perplexity() -> None:
    settings = commands.EvalSettings(n_chunks=7, n_threads=2)
    argv = commands.save_logits(("p",), Path("m"), Path("t"), Path("l"), settings)
    for flag, value in (("--ctx-size", "512"), ("--batch-size", "512"), ("--ubatch-size", "512"), ("--chunks", "7"),
                        ("--fit", "off"), ("--flash-attn", "auto"), ("--save-all-logits", "l")):  # fmt: skip
        assert _value(argv, flag) == value
