"""The card of a repository: every artifact that lies there, told from its receipt and its newest gate result.

What others wrote around our section stays, and so does what they wrote into the front matter beside our keys.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from quantplan import errors
from quantplan.artifact.receipt import Receipt
from quantplan.artifact.results import Result, Verdict
from quantplan.artifact.store import Artifact
from quantplan.pipeline.card import file_lines, made_lines, measured_table
from quantplan.units import format_size

BEGIN, END = "<!-- quantplan:begin -->", "<!-- quantplan:end -->"
_FRONT = re.compile(r"\A---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*")
_TAGS = ("gguf", "quantized", "quantplan")


def base_of(receipt: Receipt) -> str | None:
    """What an artifact was made from, where that is a repository of the hub. A pulled file was made by somebody else,
    of what its receipt does not know."""
    repo = receipt.source.get("repo")
    return str(repo) if repo and _HUB_ID.fullmatch(str(repo)) and not receipt.source.get("pulled") else None


def repository_card(
    repo: str, artifacts: Sequence[Artifact], *, before: str | None, licence: str | None, base: str | None
) -> str:
    """The card after this push. `base` is what the user says the model was made from; receipts come before it.

    Raises HubNameTaken where the card or a receipt there names another base model.
    """
    front, body = _parts(repo, before or "")
    found = _base(repo, front, artifacts, base)
    told: dict[str, Any] = {**front}
    if found is not None:
        told |= {"base_model": found, "base_model_relation": "quantized"}
    if licence and not told.get("license"):
        told["license"] = licence
    told.setdefault("library_name", "gguf")
    tags = told.get("tags")
    told["tags"] = list(dict.fromkeys([*(tags if isinstance(tags, list) else []), *_TAGS]))
    section = "\n".join([BEGIN, *_section(repo, artifacts), END])
    return f"---\n{_yaml(told)}---\n{_with_section(body, section, repo)}"


def _parts(repo: str, text: str) -> tuple[dict[str, Any], str]:
    import yaml

    match = _FRONT.match(text)
    if match is None:
        return {}, text
    try:
        front = yaml.safe_load(match[1]) or {}
    except yaml.YAMLError as error:
        why = f"its front matter is no YAML ({' '.join(str(error).split())[:120]})"
        raise errors.HubNameTaken(repo=repo, name="README.md", why=why) from None
    if not isinstance(front, dict):
        raise errors.HubNameTaken(repo=repo, name="README.md", why="its front matter is no mapping")
    return front, text[match.end() :]


def _base(repo: str, front: dict[str, Any], artifacts: Sequence[Artifact], asked: str | None) -> str | None:
    """The one base model of all. Another model's artifacts would make its card a lie."""
    there = front.get("base_model")
    there = there[0] if isinstance(there, list) and len(there) == 1 else there
    told = {"the card there": str(there)} if there else {}
    told |= {f"the receipt of {one.folder.name}": found for one in artifacts if (found := base_of(one.receipt))}
    told |= {"what was given": asked} if asked else {}
    kinds = {name.lower(): name for name in told.values()}
    if len(kinds) > 1:
        said = ", ".join(f"{where} says {name}" for where, name in told.items())
        raise errors.HubNameTaken(repo=repo, name="the repository", why=f"it is of another base model: {said}")
    return next(iter(kinds.values()), None)


def _with_section(body: str, section: str, repo: str) -> str:
    begin, end = body.find(BEGIN), body.find(END)
    if 0 <= begin < end:
        return body[:begin] + section + body[end + len(END) :]
    if body.strip():
        return f"{body.rstrip()}\n\n{section}\n"
    return f"\n# {repo.rpartition('/')[2]}\n\n{section}\n"


def _section(repo: str, artifacts: Sequence[Artifact]) -> Iterator[str]:
    """Markdown: one row an artifact, then each with its files and what was measured."""
    yield "GGUF files measured by quantplan: one folder each, with its receipt (`artifact.json`) and results."
    yield ""
    yield "| preset | file | size | verdict | mean KLD, worst text |"
    yield "|---|---|---|---|---|"
    for one in artifacts:
        receipt, result = one.receipt, own_result(one)
        size = format_size(sum(entry.bytes for entry in receipt.files))
        cells = (
            receipt.quant,
            f"`{one.folder.name}/{receipt.model_file.name}`",
            size,
            _verdict(result),
            _worst(result),
        )
        yield f"| {' | '.join(cells)} |"
    for one in artifacts:
        yield ""
        yield from _one(one)
    yield ""
    yield "Check one after the download, offline:"
    yield ""
    first = artifacts[0].folder.name
    yield "```bash"
    yield f"hf download {repo} --include '{first}/*' --local-dir . && quantplan verify {first}"
    yield "```"


def _one(one: Artifact) -> Iterator[str]:
    receipt, result = one.receipt, own_result(one)
    source = receipt.source
    at = f" at `{source['revision']}`" if source.get("revision") else ""
    made_from = source.get("repo") or source.get("name") or "a file"
    engine = receipt.tools.get("version") or receipt.tools.get("commit")
    yield f"## {receipt.quant}"
    yield ""
    verb = "Taken" if source.get("pulled") else "Made"
    yield f"{verb} from `{made_from}`{at}{f' with llama.cpp {engine}' if engine else ''}."
    yield ""
    yield from file_lines(receipt)
    yield f"- verdict: **{_verdict(result)}**{f' ({result.reason})' if result and result.reason else ''}"
    yield from made_lines(receipt)
    table = measured_table(result.metrics) if result else ()
    if table:
        yield ""
        yield from table


def own_result(one: Artifact) -> Result | None:
    """The newest gate result, where it is of this very file."""
    of_this = one.gate is not None and one.gate.artifact_sha256 == one.receipt.model_file.sha256
    return one.gate if of_this else None


def _verdict(result: Result | None) -> str:
    return result.verdict.value if result is not None else Verdict.UNMEASURED.value


def _worst(result: Result | None) -> str:
    found = [m.value for m in result.metrics if m.name == "kld_mean" and m.value is not None] if result else []
    return f"{max(found):.5f}" if found else "–"


def _yaml(told: dict[str, Any]) -> str:
    import yaml

    text: str = yaml.safe_dump(told, sort_keys=False, allow_unicode=True, width=1000)
    return text


def licence_of(receipt: Receipt, card: str | None) -> str | None:
    """The licence that an artifact's receipt or its own card names."""
    if receipt.source.get("licence"):
        return str(receipt.source["licence"])
    try:
        told = _parts("", card or "")[0].get("license")
    except errors.HubNameTaken:
        return None
    return str(told) if told else None
