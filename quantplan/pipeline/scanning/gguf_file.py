"""One GGUF, from its header to its numbers: each step only where the one before found nothing that forbids it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from quantplan.artifact.results import Finding, Severity
from quantplan.llama.process import Runner, run_tool
from quantplan.model.gguf_header import ArrayInfo, GgufHeader
from quantplan.pipeline.scanning.metadata import TEMPLATE_KEY, metadata_findings, templates
from quantplan.pipeline.scanning.numbers import scan_numbers
from quantplan.pipeline.scanning.structure import of_header, read_structure
from quantplan.pipeline.scanning.template import Rendered, differences, scan_template


@dataclass(slots=True, kw_only=True)
class TemplateScans:
    """Templates by their text: a repository has the same one in every file. `run` starts the sandbox."""

    run: Runner = run_tool
    _known: dict[str, Rendered] = field(default_factory=dict)

    def scan(self, text: str, *, file: str, where: str) -> Rendered:
        if text not in self._known:
            self._known[text] = scan_template(text, file=file, where=where, run=self.run)
            return self._known[text]
        known = self._known[text]
        return Rendered(findings=(), prompts=known.prompts, failed=known.failed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The source's template: where it is from and what it writes; `prompts` None where it has none or fails."""

    name: str
    prompts: Mapping[str, str] | None


FindBase = Callable[[GgufHeader], "Base | Finding | None"]


def scan_local(
    path: Path, *, scans: TemplateScans, find_base: FindBase, library: Path | None, with_data: bool, run: Runner,
    file: str | None = None,
) -> tuple[Finding, ...]:  # fmt: skip
    """A file on this disk. The engine's check sees it only where its structure is sound."""
    header, found = read_structure(path)
    if file is not None:
        found = tuple(_named(one, path.name, file) for one in found)
    if header is None:
        return found
    found += scan_header(header, file or path.name, scans=scans, find_base=find_base)
    if with_data and not any(one.severity is Severity.ERROR for one in found if one.rule in _FORBID):
        found += scan_numbers(path, header, library=library, run=run)
    return found


_FORBID = ("scan/blocks", "scan/vocabulary", "scan/tensors", "scan/claims", "scan/architecture")


def _named(finding: Finding, name: str, file: str) -> Finding:
    from dataclasses import replace

    return replace(finding, file=file) if finding.file == name else finding


def scan_header(
    header: GgufHeader, file: str, *, scans: TemplateScans, find_base: FindBase, structure: bool = False
) -> tuple[Finding, ...]:  # fmt: skip
    """What a header holds beside its structure: metadata, templates, and how they differ from the source's."""
    found = [*(of_header(header, file) if structure else ()), *metadata_findings(header, file)]
    for key, value in templates(header.metadata).items():
        if not isinstance(value, str):
            n = value.n if isinstance(value, ArrayInfo) else 0
            said = f"{key} is no text that can be looked into ({n:,} bytes)" if n else f"{key} is no text"
            found.append(
                Finding(rule="scan/template-size", severity=Severity.ERROR, message=said, file=file, where=key)
            )
            continue
        rendered = scans.scan(value, file=file, where=key)
        found += rendered.findings
        if key == TEMPLATE_KEY and rendered.prompts:
            found += _against_base(rendered.prompts, header, file, find_base)
    return tuple(found)


def _against_base(prompts: Mapping[str, str], header: GgufHeader, file: str, find_base: FindBase) -> list[Finding]:
    base = find_base(header)
    if base is None:
        return []
    if isinstance(base, Finding):
        return [base]
    if base.prompts is None:
        said = f"{base.name} has no template to hold this one against"
        return [Finding(rule="scan/base-unread", severity=Severity.NOTE, message=said, file=file, where=TEMPLATE_KEY)]
    return [differences(prompts, base.prompts, file=file, where=TEMPLATE_KEY, base=base.name)]
