"""The parts of a policy that need no measurement here: speed and memory of result files, scan, receipt, template, size.

A limit whose result file is missing is inconclusive and names the command that makes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from quantplan.artifact.plan_file import Plan, read_plan
from quantplan.artifact.receipt import Receipt
from quantplan.artifact.results import Metric, Result, Verdict, newest_result
from quantplan.errors import BadArtifact, BadModelFile
from quantplan.pipeline.policy import PERFORMANCE, SEVERITIES, Policy, Ratio

# policy's name -> where it is measured: (kind of result, its metric), the first that is there counts
MEASURED: Mapping[str, tuple[tuple[str, str], ...]] = {
    "decode": (("bench", "decode_tokens_per_s"), ("load", "decode_tokens_per_s")),
    "prefill": (("bench", "prefill_tokens_per_s"), ("load", "prefill_tokens_per_s")),
    "time_to_first_token": (("load", "ttft_p50_s"), ("bench", "ttft_s")),
    "load_time": (("load", "load_s"), ("bench", "load_s"), ("rehearse", "load_s")),
    "device_memory": (("load", "device_bytes"), ("bench", "device_bytes"), ("rehearse", "device_bytes")),
    "host_memory": (("load", "host_bytes"), ("bench", "host_bytes"), ("rehearse", "host_bytes")),
}
_COMMAND = {"bench": "quantplan bench", "load": "quantplan load", "rehearse": "quantplan rehearse"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is judged beside its text: `folder` has results/ and perhaps plan.json; `receipt` is None for a file that
    somebody else made; `signed` says whether a signature of the receipt was found good, None where nobody looked."""

    name: str
    sha256: str
    file_bytes: int
    folder: Path
    receipt: Receipt | None
    signed: bool | None = None
    plan: Path | None = None  # None: plan.json of the folder

    @property
    def plan_file(self) -> Path:
        return self.plan or self.folder / "plan.json"


def judge_sections(
    policy: Policy, subject: Subject, *, reference_bytes: int, template_kept: bool, baseline: Path | None
) -> tuple[Metric, ...]:  # fmt: skip
    """A metric for every demand of the policy's other sections, with its verdict and, unless it passed, why."""
    found = [*_performance(policy, subject, baseline), *_scan(policy, subject), *_provenance(policy, subject)]
    if policy.template_parity:
        why = None if template_kept else "its chat template is not the reference's"
        found.append(_yes("template_parity", template_kept, why))
    return (*found, *_size(policy, subject, reference_bytes))


def _yes(name: str, holds: bool | None, why: str | None) -> Metric:
    """A demand that holds or not; None: nobody knows."""
    verdict = {True: Verdict.PASS, False: Verdict.FAIL, None: Verdict.INCONCLUSIVE}[holds]
    return Metric(
        name=name, corpus=None, value=None if holds is None else float(holds), se=None, low=None, high=None, limit=1.0,
        n=0, limit_is="min", verdict=verdict, reason=why,
    )  # fmt: skip


def _missing(name: str, why: str, limit: float, limit_is: str) -> Metric:
    return Metric(
        name=name, corpus=None, value=None, se=None, low=None, high=None, limit=limit, n=0, limit_is=limit_is,
        verdict=Verdict.INCONCLUSIVE, reason=why,
    )  # fmt: skip


def _held(name: str, value: float, limit: float, *, limit_is: str, why: Callable[[], str]) -> Metric:
    margin = limit - value if limit_is == "max" else value - limit
    inside = margin >= 0
    return Metric(
        name=name, corpus=None, value=value, se=None, low=None, high=None, limit=limit, n=0, limit_is=limit_is,
        verdict=Verdict.PASS if inside else Verdict.FAIL, margin=margin, reason=None if inside else why(),
    )  # fmt: skip


def _performance(policy: Policy, subject: Subject, baseline: Path | None) -> Iterator[Metric]:
    for name, ratio in policy.performance.items():
        side = "min" if PERFORMANCE[name] == "at_least_ratio" else "max"
        label = f"{name}_ratio"
        own = _measured(subject.folder, name, sha256=subject.sha256)
        if own is None:
            commands = " or ".join(dict.fromkeys(_COMMAND[kind] for kind, _ in MEASURED[name]))
            yield _missing(label, f"{name} was not measured of this file: run {commands}", ratio.limit, side)
            continue
        expected, why = _expected(name, ratio, subject, baseline)
        if expected is None:
            yield _missing(label, why, ratio.limit, side)
            continue
        value = own / expected
        yield _held(label, value, ratio.limit, limit_is=side, why=_told(name, own, expected, ratio.against))


def _told(name: str, own: float, expected: float, against: str) -> Callable[[], str]:
    return lambda: f"{name}: {own:.6g} measured, {expected:.6g} in the {against}"


def _expected(name: str, ratio: Ratio, subject: Subject, baseline: Path | None) -> tuple[float | None, str]:
    """What the measurement is held against, or why there is nothing."""
    if ratio.against == "plan":
        value = _planned(subject.plan_file, name)
        return value, f"the plan beside the artifact predicts no {name}: run quantplan recommend and build with it"
    if baseline is None:
        return None, f"{name} is to be held against a baseline, and none was given"
    value = _measured(baseline, name, sha256=None)
    return value, f"the baseline {baseline.name} has no measurement of {name}: run quantplan bench on it"


def _measured(folder: Path, name: str, *, sha256: str | None) -> float | None:
    """The newest measurement of it in a folder's results, of this very file where a hash is given."""
    for kind, metric in MEASURED[name]:
        found = _result(folder, kind)
        if found is None or (sha256 is not None and found.artifact_sha256 != sha256):
            continue
        for one in found.metrics:
            if one.name == metric and one.value is not None and one.value > 0:
                return one.value
    return None


def _result(folder: Path, kind: str) -> Result | None:
    try:
        return newest_result(folder, kind)
    except BadArtifact:
        return None


def _planned(plan_file: Path, name: str) -> float | None:
    try:
        plan = read_plan(plan_file)
    except BadModelFile:
        return None
    speed = {"decode": plan.decode_tokens_per_s, "prefill": plan.prefill_tokens_per_s}.get(name)
    if speed is not None:
        return speed.value
    return _planned_bytes(plan, name)


def _planned_bytes(plan: Plan, name: str) -> float | None:
    hosts = [device for device in plan.memory if device.name.lower() in ("host", "cpu")]
    chosen = hosts if name == "host_memory" else [device for device in plan.memory if device not in hosts]
    if name not in ("host_memory", "device_memory") or not chosen:
        return None
    return float(max(device.total_bytes for device in chosen))


def _scan(policy: Policy, subject: Subject) -> Iterator[Metric]:
    if policy.scan_at_most is None:
        return
    found = _result(subject.folder, "scan")
    if found is None or found.artifact_sha256 != subject.sha256:
        yield _missing("scan", "no scan of this very file: run quantplan verify", 0.0, "max")
        return
    allowed = SEVERITIES.index(policy.scan_at_most)
    above = [one for one in found.findings if SEVERITIES.index(one.severity.value) > allowed]
    yield _held(
        "scan", float(len(above)), 0.0, limit_is="max",
        why=lambda: f"the scan found {len(above)} above {policy.scan_at_most}: {above[0].message}",
    )  # fmt: skip


def _provenance(policy: Policy, subject: Subject) -> Iterator[Metric]:
    if policy.receipt:
        lacks = "has no receipt" if subject.receipt is None else _lacks(subject.receipt)
        yield _yes("receipt_complete", lacks is None, lacks)
    if policy.signature:
        why = {
            True: None,
            False: "its signature is not good",
            None: "its signature was not checked: run quantplan verify",
        }
        yield _yes("signature", subject.signed, why[subject.signed])


def _lacks(receipt: Receipt) -> str | None:
    """What a receipt leaves untold, or None when all is there."""
    if not receipt.source.get("files"):
        return "its receipt names no source files"
    if not receipt.tools.get("version") and not receipt.tools.get("commit"):
        return "its receipt does not say which build of llama.cpp made it"
    if not receipt.steps or not any("quantize" in step.name or "convert" in step.name for step in receipt.steps):
        return "its receipt has no steps"
    return None


def _size(policy: Policy, subject: Subject, reference_bytes: int) -> Iterator[Metric]:
    for key, limit in policy.size.items():
        if key == "at_most_bytes":
            base, name = 1.0, "file_bytes"
        elif key == "of_reference_at_most":
            base, name = float(reference_bytes), "size_of_reference"
        else:
            name = "size_of_plan"
            planned = _planned_file_bytes(subject.plan_file)
            if planned is None:
                yield _missing(name, "the plan beside the artifact predicts no size", limit, "max")
                continue
            base = planned
        value = subject.file_bytes / base
        yield _held(name, value, limit, limit_is="max", why=_too_large(name, value, limit))


def _too_large(name: str, value: float, limit: float) -> Callable[[], str]:
    return lambda: f"{name} is {value:.6g}, above {limit:.6g}"


def _planned_file_bytes(plan_file: Path) -> float | None:
    """Bytes of weights that the plan counted, on all devices together."""
    try:
        plan = read_plan(plan_file)
    except BadModelFile:
        return None
    total = sum(device.model_bytes for device in plan.memory)
    return float(total) or None
