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
    if error.tool == "the gateway extra":
        return "pip install 'quantplan[gateway]'"
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


def _rate_limited(error: errors.QuantplanError) -> str:
    assert isinstance(error, errors.HubRateLimited)
    wait = "wait a little" if error.retry_after_s is None else f"wait {error.retry_after_s} s"
    return f"{wait}; with a token the limit is higher: hf auth login"


def _ambiguous_gpu(error: errors.QuantplanError) -> str:
    assert isinstance(error, errors.AmbiguousGpu)
    return f"name one of them, as in: --hardware {error.candidates[-1]}"


def _key_file(error: errors.QuantplanError) -> str:
    assert isinstance(error, errors.KeyExposed)
    return f"chmod 600 {error.path}, and change the key: others may have it"


def _unknown_gpu(error: errors.QuantplanError) -> str:
    assert isinstance(error, errors.UnknownGpu)
    if error.near:
        return f"--hardware {error.near[0]}"
    return "docs/hardware.md lists the short names; a profile file describes any machine: --hardware my-machine.toml"


def _gateway_keys(error: errors.QuantplanError) -> str:
    assert isinstance(error, errors.BadKeyFile)
    if error.others:
        return f"chmod 600 {error.path}"
    return "one key a line: KEY name=alice in_flight=2 requests_per_minute=60 max_tokens=512"


def _bad_job(error: errors.QuantplanError) -> str:
    assert isinstance(error, errors.BadJob)
    if error.path.endswith(".partial"):
        return "name other results with --output, or remove the journal to begin anew"
    return 'a line is {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": […]}}'


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
    (errors.NotEnoughNow, "stop one of them, or plan for what is free: quantplan recommend MODEL"),
    (errors.OtherHost, "plan for this machine: quantplan recommend MODEL; to serve it here all the same: --any-host"),
    (errors.KeyExposed, _key_file),
    (
        errors.PublicWithoutKey,
        "--public --api-key-file FILE (the file is made when it is not there), or leave out --host",
    ),
    (errors.KeepsCrashing, "its last lines say why; quantplan doctor looks at the machine"),
    (
        errors.ServerUnreachable,
        "check the address and the key; quantplan serve ARTIFACT starts one and prints its address",
    ),
    (errors.DoesNotFit, "a smaller preset, context or cache type fits: quantplan recommend MODEL --explain"),
    (errors.NoDiskSpace, "free some space or choose another folder with --output"),
    (errors.BadArtifact, "build it again: quantplan build MODEL --quant Q4_K_M"),
    (errors.HolesFilled, "name a folder on a disk: QUANTPLAN_CACHE=/path/on/a/disk quantplan …"),
    (errors.CannotExpress, "leave out --as fit-params, or give each slot its own cache with --no-kv-unified"),
    (errors.BadKeyFile, _gateway_keys),
    (errors.BadJob, _bad_job),
    (errors.ToolFailed, "quantplan toolchain status --self-test checks the tools on this host"),
)
