"""What to type next, by error. The only sentences that name flags and commands."""

from __future__ import annotations

from collections.abc import Callable

from quantplan import errors


def hint_for(error: errors.QuantplanError) -> str | None:
    """The next command to type, or None where there is none better than reading the message."""
    for kind, hint in _HINTS:
        if isinstance(error, kind):
            return hint(error) if callable(hint) else hint
    return None


def _unknown_model(error: errors.QuantplanError) -> str:
    assert isinstance(error, errors.UnknownModel)
    if error.near:
        return f"quantplan recommend {error.near[0]}"
    return "quantplan recommend --list-models shows the catalog; a path to a GGUF or a Hugging Face folder works too"


def _port(error: errors.QuantplanError) -> str:
    assert isinstance(error, errors.PortInUse)
    return f"choose another port: quantplan serve ARTIFACT --port {error.port + 1}"


def _tool_missing(error: errors.QuantplanError) -> str:
    assert isinstance(error, errors.ToolMissing)
    if error.tool in ("C++ compiler", "cmake"):
        return "install one (Debian: apt-get install g++), then: quantplan toolchain install"
    if error.tool == "the build extra":
        return "quantplan toolchain install --converter"
    return "quantplan toolchain install"


def _repository(error: errors.QuantplanError) -> str:
    assert isinstance(error, errors.RepositoryNotFound)
    return _unknown_model(error) if error.near else "check the spelling; if it is private: hf auth login"


def _gated(error: errors.QuantplanError) -> str:
    assert isinstance(error, errors.RepositoryGated)
    page = f"accept its terms at https://huggingface.co/{error.repo}"
    return page if error.has_token else f"{page}, then: hf auth login"


def _choose(error: errors.QuantplanError) -> str:
    assert isinstance(error, errors.ChooseFile)
    first = error.choices[0] if error.choices else "Q4_K_M"
    if first.endswith(".gguf"):
        return f"name the file: {error.model}/{first}"
    return f"name one of them: {error.model}:{first}"


def _extra_missing(error: errors.QuantplanError) -> str:
    assert isinstance(error, errors.ExtraMissing)
    return f"pip install 'quantplan[{error.extra}]'"


def _no_history(error: errors.QuantplanError) -> str:
    assert isinstance(error, errors.NoHistory)
    if error.near:
        return f"quantplan history {error.near[0]}"
    return "quantplan history --add artifacts records what an earlier build left in that folder"


def _rate_limited(error: errors.QuantplanError) -> str:
    assert isinstance(error, errors.HubRateLimited)
    wait = "wait a little" if error.retry_after_s is None else f"wait {error.retry_after_s} s"
    return f"{wait}; with a token the limit is higher: hf auth login"


def _policy(error: errors.QuantplanError) -> str:
    assert isinstance(error, errors.BadPolicy)
    if error.near and error.key is None:
        return f"quantplan gate ARTIFACT --policy {error.near[0]}"
    return "quantplan gate --explain-policy shows a policy that holds; docs/gate.md has every key"


def _ambiguous_gpu(error: errors.QuantplanError) -> str:
    assert isinstance(error, errors.AmbiguousGpu)
    return f"name one of them, as in: --hardware {error.candidates[-1]}"


def _unknown_gpu(error: errors.QuantplanError) -> str:
    assert isinstance(error, errors.UnknownGpu)
    if error.near:
        return f"--hardware {error.near[0]}"
    return "docs/hardware.md lists the short names; a profile file describes any machine: --hardware my-machine.toml"


def _nothing_fits(error: errors.QuantplanError) -> str:
    assert isinstance(error, errors.NothingFits | errors.Contradiction)
    if not error.changes:
        return "no single change makes it fit: a smaller model, or another machine (--hardware NAME tries one)"
    said = [_CHANGES[what].format(value=value) for what, value in error.changes]
    return f"the smallest change: {said[0]}" + (f"; also: {', '.join(said[1:])}" if said[1:] else "")


_CHANGES = {
    "speed": "--min-speed {value}",
    "slots": "--parallel {value}",
    "cache": "--kv {value}",
    "context": "--ctx {value}",
    "presets": "--quant {value}",
    "devices": "without --device",
    "prompt cache": "--cache-ram {value}",
    "ram": "--max-ram {value}MiB",
    "disk": "--max-disk {value}MiB (that much must be free)",
    "margin": "--margin {value}",
}


Hint = str | Callable[[errors.QuantplanError], str]

_HINTS: tuple[tuple[type[errors.QuantplanError], Hint], ...] = (
    (errors.RepositoryNotFound, _repository),
    (errors.UnknownModel, _unknown_model),
    (errors.RepositoryGated, _gated),
    (errors.HubTokenRefused, "hf auth login stores a new token; HF_TOKEN in the environment comes before it"),
    (errors.HubRateLimited, _rate_limited),
    (errors.HubOffline, "unset HF_HUB_OFFLINE, or name a local file, a folder or a catalog model"),
    (errors.HubUnreachable, "check the network and HF_ENDPOINT; local files, folders and catalog models need neither"),
    (errors.ChooseFile, _choose),
    (errors.PortInUse, _port),
    (errors.BadPolicy, _policy),
    (errors.NoReference, "name it with --reference model-BF16.gguf, or let it be made with --source MODEL"),
    (errors.NotComparable, "name the 16-bit GGUF of the very same model with --reference"),
    (errors.DamagedWeights, "download or build the file again: its weights cannot be right"),
    (errors.BadText, "save the text as UTF-8 and name it with --text NAME=FILE"),
    (errors.AmbiguousGpu, _ambiguous_gpu),
    (errors.UnknownGpu, _unknown_gpu),
    (errors.BadProfile, "docs/hardware.md shows a profile file, line by line"),
    (errors.ToolMissing, _tool_missing),
    (errors.BadModelFile, "check the path, or download the file again"),
    (errors.UnsupportedQuantization, "name the checkpoint it was quantized from, or a GGUF of it"),
    (errors.BadConfig, "compare config.json with the one of the model's repository"),
    (
        errors.UnsupportedArchitecture,
        "quantplan toolchain status shows the pinned build and what it converts; to let "
        "estimate ask the converter itself: quantplan toolchain install --converter",
    ),
    (errors.NothingFits, _nothing_fits),
    (errors.Contradiction, _nothing_fits),
    (errors.DoesNotFit, "a smaller preset, context or cache type fits: quantplan recommend MODEL --explain"),
    (errors.NoDiskSpace, "free some space or choose another folder with --output"),
    (errors.BadArtifact, "build it again: quantplan build MODEL --quant Q4_K_M"),
    (errors.HolesFilled, "name a folder on a disk: QUANTPLAN_CACHE=/path/on/a/disk quantplan …"),
    (errors.CannotExpress, "leave out --as fit-params, or give each slot its own cache with --no-kv-unified"),
    (errors.ExtraMissing, _extra_missing),
    (errors.NoHistory, _no_history),
    (errors.HistoryUnreadable, "move the file away; quantplan history --add FOLDER records artifacts in a new one"),
    (errors.DifferentSources, "compare artifacts of one build: quantplan build MODEL --quant Q4_K_M --quant Q5_K_M"),
    (errors.ToolFailed, "quantplan toolchain status --self-test checks the tools on this host"),
)
