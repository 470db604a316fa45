"""Prometheus: what to scrape, and alerts that compare what is served with the plan."""

from __future__ import annotations

from typing import Any

from quantplan.artifact.results import newest_result
from quantplan.serving.export.deployment import Deployment
from quantplan.serving.export.exported import Exported, Exporter, File, Need, commented
from quantplan.serving.export.yaml_text import yaml_text

KEY_FILE = "/etc/prometheus/{name}.key"
SLOW = 0.8  # of the speed that was measured with the artifact, or of the least that the plan promises
_LEAST_TOKENS = 512  # generated in ten minutes, before a rate says anything
_NEAR = 0.95  # of a slot's context

Rule = dict[str, Any]


def write(deployments: tuple[Deployment, ...]) -> Exported:
    """prometheus.yml and the rules it names."""
    (told,) = deployments
    name = f"quantplan-{told.name}.rules.yml"
    marks = f"# {told.title}\n{commented(told)}"
    files = (
        File(name="prometheus.yml", text=f"{marks}{yaml_text(_scrape(told, name))}"),
        File(name=name, text=f"{marks}{yaml_text({'groups': _groups(told)})}"),
    )
    return Exported(files=files, notes=_notes(told))


def _scrape(told: Deployment, rules: str) -> dict[str, Any]:
    host = told.target.host or "127.0.0.1"
    reach = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    address = f"[{reach}]:{told.target.port}" if ":" in reach else f"{reach}:{told.target.port}"
    job = {
        "job_name": told.name, "metrics_path": "/metrics",
        "authorization": {"type": "Bearer", "credentials_file": _key(told)},
        "static_configs": [{"targets": [address], "labels": {"quant": told.plan.quant}}],
    }  # fmt: skip
    return {
        "global": {"scrape_interval": "15s", "scrape_timeout": "10s", "evaluation_interval": "15s"},
        "rule_files": [rules],
        "scrape_configs": [job],
    }


def _key(told: Deployment) -> str:
    return told.target.api_key_file or KEY_FILE.format(name=told.name)


def _groups(told: Deployment) -> list[dict[str, Any]]:
    """The engine's own metrics, and the gateway's: of one address only one of them is there."""
    return [
        {"name": f"{told.name}-engine", "rules": _engine(told)},
        {"name": f"{told.name}-gateway", "rules": _gateway(told)},
    ]


def _engine(told: Deployment) -> list[Rule]:
    job = f'{{job="{told.name}"}}'
    plan, found = told.plan, []
    found.append(_alert("QuantplanDown", f"up{job} == 0", "2m", "critical", "it does not answer Prometheus"))
    rate = _decode_rate(job, drafts=plan.draft is not None)
    record = "quantplan:decode_tokens_per_second"
    found.append({"record": record, "expr": rate})
    promised = _promised(told)
    if promised is not None:
        value, whence = promised
        enough = f"increase(llamacpp:tokens_predicted_total{job}[10m]) > {_LEAST_TOKENS}"
        found.append(_alert(
            "QuantplanDecodeSlow", f"{record}{job} < {SLOW * value:.6g} and {enough}", "5m", "warning",
            f"{{{{ $value | humanize }}}} tokens/s are under {SLOW:g} of {value:.4g}, {whence}",
        ))  # fmt: skip
    found += [
        _alert("QuantplanQueueLong", f"llamacpp:requests_deferred{job} > {told.n_queue}", "1m", "warning",
               f"more than the planned {told.n_queue} requests wait: somebody goes round the front door"),
        _alert("QuantplanSaturated", f"min_over_time(llamacpp:requests_deferred{job}[10m]) > 0", "5m", "warning",
               f"all {plan.n_parallel} slots have been taken for ten minutes"),
        _alert("QuantplanContextNearlyFull", f"llamacpp:n_tokens_max{job} > {int(_NEAR * plan.n_ctx_per_slot)}", "1m",
               "info", f"a request came near the {plan.n_ctx_per_slot} tokens of its slot"),
        _alert("QuantplanRestarts", f"resets(llamacpp:n_decode_total{job}[1h]) > 2", "0s", "warning",
               "the engine began anew {{ $value }} times in an hour"),
    ]  # fmt: skip
    return found


def _promised(told: Deployment) -> tuple[float, str] | None:
    """Tokens a second of one stream that it has to reach, and whose word that is; None where nobody gave one."""
    result = newest_result(told.folder, "bench")
    if result is not None and result.artifact_sha256 == told.sha256:
        for metric in result.metrics:
            if metric.name == "decode_tokens_per_s" and metric.value:
                return metric.value, "as measured with this artifact"
    figure = told.plan.decode_tokens_per_s
    return (figure.low, "the least that the plan promises") if figure and figure.low > 0 else None


def _decode_rate(job: str, *, drafts: bool) -> str:
    """Tokens a second of all slots together. The engine adds up each slot's own time, so their quotient is the rate of
    one stream; times the tokens of a decode, which is how many streams there were (not so with a draft)."""
    tokens = f"rate(llamacpp:tokens_predicted_total{job}[10m])"
    stream = f"{tokens} / rate(llamacpp:tokens_predicted_seconds_total{job}[10m])"
    if drafts:
        return stream
    return f"{stream} * clamp_min({tokens} / rate(llamacpp:n_decode_total{job}[10m]), 1)"


def _gateway(told: Deployment) -> list[Rule]:
    job = f'{{job="{told.name}"}}'
    name = "quantplan_gateway_"
    all_of_them = f"sum(rate({name}requests_total{job}[10m]))"
    refused = f'sum(rate({name}requests_total{{job="{told.name}",outcome="rate_limit_exceeded"}}[10m]))'
    failed = f'sum(rate({name}requests_total{{job="{told.name}",outcome=~"engine_.*"}}[10m]))'
    return [
        _alert("QuantplanGatewayThrottled", f"{name}concurrency_limit{job} < {told.plan.n_parallel}", "5m", "warning",
               f"a strained host: fewer than the planned {told.plan.n_parallel} requests run at once"),
        _alert("QuantplanGatewayQueueSlow",
               f"histogram_quantile(0.9, sum by (le) (rate({name}queue_seconds_bucket{job}[10m]))) > 30", "5m",
               "warning", "one of ten requests waits longer than half a minute"),
        _alert("QuantplanGatewayRefuses", f"{refused} > 0.1 * {all_of_them}", "10m", "warning",
               "more than a tenth of the requests finds no place"),
        _alert("QuantplanGatewayEngineFails", f"{failed} > 0", "5m", "critical",
               "the engine leaves requests unanswered"),
        _alert("QuantplanGatewayModelGone", f"{name}model_loaded{job} == 0", "5m", "info", "no model is loaded"),
    ]  # fmt: skip


def _alert(name: str, expr: str, lasts: str, severity: str, summary: str) -> Rule:
    return {"alert": name, "expr": expr, "for": lasts, "labels": {"severity": severity},
            "annotations": {"summary": summary}}  # fmt: skip


def _notes(told: Deployment) -> tuple[str, ...]:
    notes = [
        f"Prometheus reads the engine's key from {_key(told)}: its user has to be able to",
        "the engine reports neither its memory nor its threads: their limits are those of the unit or container "
        "it runs in",
    ]
    if _promised(told) is None:
        notes.append("no speed was measured and the plan predicts none: there is no alert of a slow decode")
    return tuple(notes)


def _needs(_: Deployment) -> tuple[Need, ...]:
    return (Need(version=(2, 26), what="authorization"),)


EXPORTER = Exporter(target="prometheus", write=write, needs=_needs)
