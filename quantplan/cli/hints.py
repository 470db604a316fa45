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


def _no_space(error: errors.QuantplanError) -> str:
    assert isinstance(error, errors.NoDiskSpace)
    if error.remote_bytes is not None:
        need = f"{-(-error.remote_bytes // 1024**2):,} MiB"
        return f"--disk remote takes {need}: it reads the weights from the hub, twice, and does not keep them"
    return "free some space or choose another folder with --output"


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
    if error.tool == "the sign extra":
        return "pip install 'quantplan[sign]'"
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


def _extra_missing(error: errors.QuantplanError) -> str:
    assert isinstance(error, errors.ExtraMissing)
    return f"pip install 'quantplan[{error.extra}]'"


def _cannot_export(error: errors.QuantplanError) -> str:
    assert isinstance(error, errors.CannotExport)
    return error.instead or "quantplan recommend MODEL --hardware MACHINE plans for what the target has"


def _no_history(error: errors.QuantplanError) -> str:
    assert isinstance(error, errors.NoHistory)
    if error.near:
        return f"quantplan history {error.near[0]}"
    return "quantplan history --add artifacts records what an earlier build left in that folder"


def _gguf_only(error: errors.QuantplanError) -> str:
    assert isinstance(error, errors.HoldsGgufOnly)
    return f"quantplan pull {error.repo}"


def _no_gguf(error: errors.QuantplanError) -> str:
    assert isinstance(error, errors.HoldsNoGguf)
    return f"quantplan build {error.repo} --quant Q4_K_M"


def _already_quantized(error: errors.QuantplanError) -> str:
    assert isinstance(error, errors.AlreadyQuantized)
    if error.possible:
        return f"quantplan build {error.model} --quant {error.possible[0]}"
    return "name the 16-bit checkpoint that it was made from"


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


def _exposed_key(error: errors.QuantplanError) -> str:
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


def _fleet_refused(error: errors.QuantplanError) -> str:
    assert isinstance(error, errors.FleetRefused)
    return hint_for(error.refusals[0][1]) or "quantplan fleet check FILE says it again without building"


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


def _no_model_left(error: errors.QuantplanError) -> str:
    assert isinstance(error, errors.NoModelLeft)
    if error.near:
        return f"--license {error.near[0]}"
    return "leave one of the filters out; quantplan recommend --list-models shows the catalog"


def _no_data(error: errors.QuantplanError) -> str:
    assert isinstance(error, errors.UseWithoutData)
    return f"--use {error.known[0]}, or name the model: quantplan recommend MODEL --use {error.use}"


def _runtime(error: errors.QuantplanError) -> str:
    assert isinstance(error, errors.RuntimeCannot)
    return f"--runtime {error.others[0]}" if error.others else "quantplan recommend --runtime auto says why for each"


Hint = str | Callable[[errors.QuantplanError], str]

_HINTS: tuple[tuple[type[errors.QuantplanError], Hint], ...] = (
    (errors.RepositoryNotFound, _repository),
    (errors.UnknownModel, _unknown_model),
    (errors.RepositoryGated, _gated),
    (errors.HubNoToken, "hf auth login stores one (with the right to write); HF_TOKEN in the environment does too"),
    (errors.HubNotWritable, "make a token with write access at https://huggingface.co/settings/tokens: hf auth login"),
    (errors.HubNameTaken, "choose another repository, or another name for the artifact's folder"),
    (errors.HubMoved, "run the same command again: what the hub has is not sent twice"),
    (errors.HubTokenRefused, "hf auth login stores a new token; HF_TOKEN in the environment comes before it"),
    (errors.HubRateLimited, _rate_limited),
    (errors.HubOffline, "unset HF_HUB_OFFLINE, or name a local file, a folder or a catalog model"),
    (errors.HubUnreachable, "check the network and HF_ENDPOINT; local files, folders and catalog models need neither"),
    (errors.HubContentDiffers, "the network or a proxy between changes what comes; try another one, or later"),
    (errors.HubRedirectRefused, "try again: the hub signs new addresses every time"),
    (errors.HoldsGgufOnly, _gguf_only),
    (errors.HoldsNoGguf, _no_gguf),
    (errors.ScanFailed, "do not load it; get it again, or from somebody else"),
    (errors.UnknownItem, "quantplan list shows what is kept, and its names"),
    (errors.StillNeeded, "delete the artifact first: quantplan rm ARTIFACT"),
    (errors.NotConfirmed, "answer yes where you are asked, or give --yes"),
    (errors.RemoteCode, "read that code; to let the conversion run it: --trust-remote-code"),
    (errors.PickleWeights, "pickled files can hold code; torch reads them as weights only with --allow-pickle"),
    (errors.TokenizerRefused, "a newer llama.cpp may know it; a finished GGUF needs no conversion: quantplan pull"),
    (errors.TemplateLost, "give serve the template: put it into tokenizer_config.json as chat_template"),
    (errors.AlreadyQuantized, _already_quantized),
    (errors.ImatrixNeeded, "choose a preset of 3 bits or more, such as Q4_K_M"),
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
    (errors.NotEnoughNow, "stop one of them, or plan for what is free: quantplan recommend MODEL"),
    (errors.OtherHost, "plan for this machine: quantplan recommend MODEL; to serve it here all the same: --any-host"),
    (errors.KeyExposed, _exposed_key),
    (
        errors.PublicWithoutKey,
        "--public --api-key-file FILE (the file is made when it is not there), or leave out --host",
    ),
    (errors.KeepsCrashing, "its last lines say why; quantplan doctor looks at the machine"),
    (errors.NoModelLeft, _no_model_left),
    (errors.UseWithoutData, _no_data),
    (errors.NoModelFits, "a machine with more memory: quantplan recommend --hardware NAME; or a shorter --ctx"),
    (errors.NoMachineMeets, "lower --min-speed or --min-ctx, or look further: --machines all"),
    (errors.RuntimeCannot, _runtime),
    (errors.BadPrices, "docs/runtime-and-cost.md shows a price file, line by line"),
    (errors.NothingFits, _nothing_fits),
    (errors.Contradiction, _nothing_fits),
    (
        errors.ServerUnreachable,
        "check the address and the key; quantplan serve ARTIFACT starts one and prints its address",
    ),
    (errors.DoesNotFit, "a smaller preset, context or cache type fits: quantplan recommend MODEL --explain"),
    (errors.DiskFull, "free some space and run the same command again: what has finished is not repeated"),
    (errors.NotValidated, "quantplan gate judges it; to go on without a pass: --allow-unvalidated"),
    (errors.NoDiskSpace, _no_space),
    (errors.CannotReadRemotely, "--disk tight is the smallest use of the disk then"),
    (errors.BadArtifact, "build it again: quantplan build MODEL --quant Q4_K_M"),
    (errors.HolesFilled, "name a folder on a disk: QUANTPLAN_CACHE=/path/on/a/disk quantplan …"),
    (errors.CannotExpress, "leave out --as fit-params, or give each slot its own cache with --no-kv-unified"),
    (errors.ExtraMissing, _extra_missing),
    (errors.SeveralFiles, "--output FOLDER writes them; --json prints them in one document"),
    (errors.TargetTooOld, "update it; or leave out --target-version for what the newest one reads"),
    (errors.CannotExport, _cannot_export),
    (errors.UnknownFormat, "quantplan export --help lists the formats"),
    (errors.NoHistory, _no_history),
    (errors.HistoryUnreadable, "move the file away; quantplan history --add FOLDER records artifacts in a new one"),
    (errors.DifferentSources, "compare artifacts of one build: quantplan build MODEL --quant Q4_K_M --quant Q5_K_M"),
    (errors.BadKeyFile, _gateway_keys),
    (errors.FleetRefused, _fleet_refused),
    (errors.FleetTooLarge, "raise max_disk or max_memory, free some, or build fewer at a time: --only ID"),
    (errors.BadFleet, "docs/fleet.md shows a build file, key by key; quantplan fleet check FILE looks at it alone"),
    (errors.BadJob, _bad_job),
    (errors.ToolFailed, "quantplan toolchain status --self-test checks the tools on this host"),
)
