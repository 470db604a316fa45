"""Fits data/speed_calibration.json: the constants of the speed model, by backend.

    python scripts/calibrate_speed.py [--write]

Data: ../shared/truth/speed_h200.csv, ../shared/truth/measured_public.csv (what speed_rows.py can name) and
data/speed_measured.csv. Robust (absolute relative error; repeats of one model and card, and rows of one preset, count
as the root of their number: Q4_K_M alone would decide otherwise), with a weak pull towards plausible starting values,
so that what no row shows stays where it was. Then cards and models are left out one at a time, and the ranges are set
by the errors of the rows.
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from speed_rows import ROOT, Row, fits, h200_rows, more_rows, predicted, public_rows, spec_of

from quantplan.planner.calibration import BackendSpeed, Calibration
from quantplan.planner.speed_time import VECTOR_TOKENS
from quantplan.rehearsal.calibration import shipped_calibration

PULL = 0.003  # of the starting values, in squared logarithms, beside a mean loss of about 0.1
MOST_READ = 0.95  # of a datasheet's bandwidth that anything reads
# Where nobody measured: four fifths of two channels of DDR4-3200; down to one of DDR4-2666, up to two of DDR5-6400
UNMEASURED_RAM = {"value": 0.8 * 2 * 25.6e9, "low": 0.8 * 21.3e9, "high": 0.8 * 2 * 51.2e9}
UNMEASURED_RAM_IS = "two channels of DDR4-3200; not measured"
SOFT = 0.03  # errors below count as squares
CLASSES = ("f", "q8", "q4", "q4_k", "q6_k", "q3_k", "q2_k", "iq")
MATRIX = {"GDDR": 2.0, "HBM": 1.0, "shared": 2.0, "DDR": 1.0}
SPREADS = {"GDDR": 0.2, "HBM": 0.2, "shared": 0.2, "DDR": 0.2}

# Where the fit starts, and what it is pulled to: a card reads 90 % of what its datasheet says in streams, kernels take
# some microseconds, unpacking a weight takes about ten operations.
START_GPU = BackendSpeed(
    read={"GDDR": 0.9, "HBM": 0.85, "shared": 0.75, "DDR": 0.75}, join=2.0,
    cost={"f": 5.0, "q8": 12.0, "q4": 14.0, "q4_k": 14.0, "q6_k": 25.0, "q3_k": 25.0, "q2_k": 20.0, "iq": 16.0},
    attention=8.0, attention_quantized=20.0, matrix_s=3e-6, vector_s=1e-6, attention_s=8e-6, recurrent_s=1e-5,
    mixture_s=3e-5, token_s=5e-5, batch=0.4,
    prefill={"f": 0.4, "q8": 0.2, "q4": 0.18, "q4_k": 0.18, "q6_k": 0.15, "q3_k": 0.15, "q2_k": 0.12, "iq": 0.18},
    prefill_experts=1.0, prefill_attention=0.15, tile=50.0, expert_tile=50.0, matrix=MATRIX, prefill_matrix_s=1e-5,
    prefill_layer_s=2e-5, crossing_s=1e-4,
    spread_decode=SPREADS, spread_prefill=SPREADS,
)  # fmt: skip
START_CPU = BackendSpeed(
    read={"GDDR": 0.95, "HBM": 0.95, "shared": 0.95, "DDR": 0.95}, join=2.0,
    cost={"f": 5.0, "q8": 5.0, "q4": 6.0, "q4_k": 8.0, "q6_k": 7.0, "q3_k": 8.0, "q2_k": 6.0, "iq": 7.0},
    attention=40.0, attention_quantized=60.0, matrix_s=8e-6, vector_s=2e-6, attention_s=1e-5, recurrent_s=2e-5,
    mixture_s=2e-5, token_s=1e-4, batch=0.6, prefill=dict.fromkeys(CLASSES, 0.5), prefill_experts=0.5,
    prefill_attention=0.1, tile=2.0, expert_tile=2.0, matrix=MATRIX, prefill_matrix_s=1e-5,
    prefill_layer_s=2e-5, crossing_s=0.0,
    spread_decode=SPREADS, spread_prefill=SPREADS,
)  # fmt: skip
KERNELS = ("matrix_s", "vector_s", "attention_s", "recurrent_s", "mixture_s", "token_s")
DECODE = (
    "read.GDDR",
    "read.HBM",
    "read.shared",
    *(f"cost.{c}" for c in CLASSES),
    "attention",
    "attention_quantized",
    "batch",
    *KERNELS,
)
DECODE_CPU = ("read.DDR", *(f"cost.{c}" for c in CLASSES), "attention", "matrix_s", "token_s")
PREFILL_CPU = (*(f"prefill.{c}" for c in CLASSES), "prefill_experts", "prefill_attention", "tile")
PREFILL = (
    *(f"prefill.{c}" for c in CLASSES),
    "prefill_attention",
    "tile",
    "expert_tile",
    "prefill_matrix_s",
    "prefill_layer_s",
)


def get(constants: BackendSpeed, name: str) -> float:
    field, _, key = name.partition(".")
    value = getattr(constants, field)
    return float(value[key] if key else value)


def put(constants: BackendSpeed, values: Mapping[str, float]) -> BackendSpeed:
    changed: dict[str, object] = {}
    for name, value in values.items():
        field, _, key = name.partition(".")
        capped = min(value, MOST_READ) if field == "read" else value
        changed[field] = {**changed.get(field, getattr(constants, field)), key: capped} if key else value
    return replace(constants, **changed)


# ---- robust fit


Predict = Callable[[Row, Mapping[str, float]], float]


def fit(rows: Sequence[Row], start: Mapping[str, float], predict: Predict, *, pull: float = PULL) -> dict[str, float]:
    """The values, in logarithms, that bring the mean absolute relative error of the rows to its least."""
    names = list(start)
    weights = row_weights(rows)
    x0 = np.log([start[name] for name in names])

    def errors(x: np.ndarray) -> np.ndarray:
        values = dict(zip(names, np.exp(x), strict=True))
        return np.array([math.log(predict(row, values) / row.measured) for row in rows])

    def loss(e: np.ndarray, x: np.ndarray) -> float:
        return float((weights * np.sqrt(e * e + SOFT * SOFT)).sum() + pull * ((x - x0) ** 2).sum())

    x, damping = x0.copy(), 1e-2
    e = errors(x)
    best = loss(e, x)
    for _ in range(60):
        jacobian = np.array([(errors(x + 1e-3 * unit) - e) / 1e-3 for unit in np.eye(len(x))]).T
        scaled = weights / np.sqrt(e * e + SOFT * SOFT)
        hessian = (jacobian * scaled[:, None]).T @ jacobian + 2 * pull * np.eye(len(x))
        slope = (jacobian * scaled[:, None]).T @ e + 2 * pull * (x - x0)
        for _ in range(8):
            step = np.clip(np.linalg.solve(hessian + damping * np.diag(np.diag(hessian)), -slope), -0.7, 0.7)
            tried = errors(x + step)
            got = loss(tried, x + step)
            if got < best:
                break
            damping *= 4
        else:
            break
        gained, x, e, best, damping = best - got, x + step, tried, got, max(damping / 4, 1e-7)
        if gained < 1e-6:
            break
    return dict(zip(names, (float(v) for v in np.exp(x)), strict=True))


def row_weights(rows: Sequence[Row]) -> np.ndarray:
    counts = collections.Counter((row.device, row.model, row.quant, row.kind) for row in rows)
    presets = collections.Counter((row.device == "H200", row.quant, row.kind) for row in rows)
    weights = np.array([
        1 / math.sqrt(counts[row.device, row.model, row.quant, row.kind])
        / math.sqrt(presets[row.device == "H200", row.quant, row.kind])
        for row in rows
    ])  # fmt: skip
    return weights / weights.sum()


def with_backend(calibration: Calibration, name: str, constants: BackendSpeed) -> Calibration:
    return replace(calibration, backends={**calibration.backends, name: constants})


# ---- the rows of each fit


def usable(row: Row) -> bool:
    """A public row that may teach: chosen, or without a stated context but small enough to be all on the card."""
    return not row.why_not or (
        row.why_not == "no context stated" and fits(row.model, row.quant, spec_of(row.device), "8192", share=0.85)
    )


def gather() -> dict[str, list[Row]]:
    own = [*h200_rows(), *more_rows()]
    public = [row for row in public_rows() if usable(row)]
    return {
        "H200": [row for row in own if row.device == "H200" and row.n_active <= VECTOR_TOKENS],
        "slots": [row for row in own if row.device == "H200" and row.n_active > VECTOR_TOKENS],
        "partial": [row for row in own if "H200 + CPU" in row.device],
        "CPU": [row for row in own if row.device.startswith("CPU")],
        **{name: [row for row in public if row.backend == name] for name in ("CUDA", "ROCm", "Vulkan", "Metal")},
    }


def of(rows: Sequence[Row], kind: str) -> list[Row]:
    return [row for row in rows if row.kind == kind]


# ---- fits


def fit_backend(calibration: Calibration, name: str, rows: Sequence[Row], names: Sequence[str]) -> BackendSpeed:
    base = calibration.backends[name]

    def predict(row: Row, values: Mapping[str, float]) -> float:
        return predicted(row, with_backend(calibration, name, put(base, values)), None if name == "CPU" else name)

    return put(base, fit(rows, {key: get(base, key) for key in names}, predict))


def fit_factors(calibration: Calibration, name: str, rows: Sequence[Row], prefill: Sequence[Row]) -> BackendSpeed:
    """A backend with few rows: CUDA's constants times a factor each for reading, computing, kernels and prefill."""
    base = calibration.backends["CUDA"]

    def scaled(values: Mapping[str, float]) -> BackendSpeed:
        changed = {f"read.{m}": base.read[m] * values["read"] for m in base.read}
        changed |= {f"cost.{c}": base.cost[c] * values["cost"] for c in CLASSES}
        changed |= {
            "attention": base.attention * values["cost"],
            "attention_quantized": base.attention_quantized * values["cost"],
        }
        changed |= {key: get(base, key) * values["kernels"] for key in KERNELS}
        changed |= {f"prefill.{c}": base.prefill[c] * values["prefill"] for c in CLASSES}
        changed |= {key: get(base, key) * values["kernels"] for key in ("prefill_matrix_s", "prefill_layer_s")}
        return put(base, changed | {"prefill_attention": base.prefill_attention * values["prefill"]})

    def predict(row: Row, values: Mapping[str, float]) -> float:
        return predicted(row, with_backend(calibration, name, scaled({**start, **values})), name)

    start = {"read": 1.0, "cost": 1.0, "kernels": 1.0, "prefill": 1.0}
    found = fit(rows, {k: start[k] for k in ("read", "cost", "kernels")}, predict, pull=0.01)
    start |= found
    if prefill:
        found |= fit(prefill, {"prefill": 1.0}, predict, pull=0.01)
    factors = ", ".join(f"{key} x {value:.2f}" for key, value in found.items())
    print(f"  {name}: {factors} ({len(rows)} decode, {len(prefill)} prefill rows)")
    return scaled({**start, **found})


def fit_all(data: Mapping[str, Sequence[Row]], *, quick: bool = False) -> Calibration:
    calibration = start_calibration()
    cuda = [*data["H200"], *data["CUDA"]]
    hosted = [*data["CPU"], *(row for row in data["partial"] if row.kv_offload)]
    calibration = with_backend(calibration, "CUDA", fit_backend(calibration, "CUDA", of(cuda, "decode"), DECODE))
    names = (*PREFILL, "matrix.GDDR")
    calibration = with_backend(
        calibration, "CUDA", fit_backend(calibration, "CUDA", [*of(cuda, "prefill"), *data["slots"]], names)
    )
    calibration = with_backend(calibration, "CPU", fit_backend(calibration, "CPU", of(hosted, "decode"), DECODE_CPU))
    calibration = with_backend(
        calibration, "CPU", fit_backend(calibration, "CPU", of(data["CPU"], "prefill"), PREFILL_CPU)
    )
    calibration = with_backend(
        calibration, "CUDA", fit_backend(calibration, "CUDA", of(data["partial"], "decode"), ("crossing_s",))
    )

    def staged(row: Row, values: Mapping[str, float]) -> float:
        return predicted(row, replace(calibration, staged_bytes_per_s=values["staged"]), "CUDA")

    found = fit(of(data["partial"], "prefill"), {"staged": 7e9}, staged)
    calibration = replace(calibration, staged_bytes_per_s=found["staged"])
    for name in ("ROCm", "Vulkan", "Metal"):
        rows = of(data[name], "decode")
        calibration = with_backend(calibration, name, fit_factors(calibration, name, rows, of(data[name], "prefill")))
    return calibration


def start_calibration() -> Calibration:
    gpus = dict.fromkeys(("CUDA", "ROCm", "Vulkan", "Metal"), START_GPU)
    return replace(shipped_calibration(), backends={**gpus, "CPU": START_CPU}, staged_bytes_per_s=7e9,
                   source="fit in progress", measured=())  # fmt: skip


# ---- errors


def errors_of(rows: Sequence[Row], calibration: Calibration) -> np.ndarray:
    """Predicted over measured, less one."""
    return np.array([
        predicted(row, calibration, None if row.backend == "CPU" else row.backend) / row.measured - 1 for row in rows
    ])  # fmt: skip


def line(name: str, errors: np.ndarray) -> str:
    size = np.abs(errors)
    return (f"{name:34} {len(errors):4}  median {np.median(size):6.1%}  90 % {np.quantile(size, 0.9):6.1%}  "
            f"bias {np.median(errors):+6.1%}")  # fmt: skip


def left_out(
    rows: Sequence[Row], calibration: Calibration, backend: str, names: Sequence[str], what: str,
    folds: int,
) -> np.ndarray:  # fmt: skip
    """Errors of rows whose model (or card) the fit of their backend did not see; so many are left out in turns."""
    names_of = sorted({getattr(row, what) for row in rows})
    parts: dict[int, list[int]] = collections.defaultdict(list)
    for index, row in enumerate(rows):
        parts[names_of.index(getattr(row, what)) % folds].append(index)
    errors = np.zeros(len(rows))
    start = with_backend(calibration, backend, start_calibration().backends[backend])
    for indices in parts.values():
        others = [row for i, row in enumerate(rows) if i not in set(indices)]
        seen = with_backend(calibration, backend, fit_backend(start, backend, others, names))
        errors[indices] = errors_of([rows[i] for i in indices], seen)
    return errors


def leave_out(data: Mapping[str, Sequence[Row]], calibration: Calibration, folds: int) -> None:
    """Prints the decode errors of what the fit did not see: models, then cards."""
    cuda = of([*data["H200"], *data["CUDA"]], "decode")
    barred = np.array([not row.why_not for row in cuda])
    for what in ("model", "device"):
        errors = left_out(cuda, calibration, "CUDA", DECODE, what, folds)
        print(line(f"CUDA decode, {what} left out", errors))
        print(line(f"CUDA decode, {what} left out, barred", errors[barred]))
    hosted = of([*data["CPU"], *(row for row in data["partial"] if row.kv_offload)], "decode")
    for what in ("model", "device"):
        print(line(f"CPU and partial, {what} left out", left_out(hosted, calibration, "CPU", DECODE_CPU, what, folds)))


# ---- ranges


COVERED = 0.82  # of the rows lie within the range: between the 75 and the 90 % that a range should cover
LEAST, MOST = 0.08, 0.35


def half_width(errors: np.ndarray, *, factor: float = 1.0) -> float:
    """The relative half-width that covers so many of these errors."""
    if not len(errors):
        return MOST
    return float(np.clip(factor * np.quantile(np.abs(np.log1p(errors)), COVERED), LEAST, MOST))


def with_ranges(data: Mapping[str, Sequence[Row]], calibration: Calibration) -> Calibration:
    """Half-widths by backend and kind of memory, from the errors of the rows; of backends with few rows a fifth more
    than they show."""
    cuda = of([*data["H200"], *data["CUDA"]], "decode")
    errors = errors_of(cuda, calibration)
    memory = [memory_of(row) for row in cuda]
    wide = {m: half_width(np.array([e for e, own in zip(errors, memory, strict=True) if own == m]))
            for m in ("GDDR", "HBM", "shared")}  # fmt: skip
    sets = {"CUDA": (wide, half_width(errors_of(of([*data["H200"], *data["CUDA"]], "prefill"), calibration)))}
    for name in ("ROCm", "Vulkan", "Metal"):
        decode = half_width(errors_of(of(data[name], "decode"), calibration), factor=1.2)
        sets[name] = (dict.fromkeys(SPREADS, decode), MOST)
    hosted = [*data["CPU"], *data["partial"]]
    decode, prefill = (
        half_width(errors_of(of(hosted, kind), calibration), factor=1.2) for kind in ("decode", "prefill")
    )
    sets["CPU"] = (dict.fromkeys(SPREADS, decode), prefill)
    backends = {
        name: replace(
            constants, spread_decode={**dict.fromkeys(SPREADS, MOST), **sets[name][0]},
            spread_prefill=dict.fromkeys(SPREADS, sets[name][1]),
        )
        for name, constants in calibration.backends.items()
    }  # fmt: skip
    return replace(calibration, backends=backends)


def memory_of(row: Row) -> str:
    spec = spec_of("H200 SXM 141 GB" if row.device == "H200" else row.device)
    return "shared" if spec.unified else "HBM" if (spec.memory_type or "").startswith("HBM") else "GDDR"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write data/speed_calibration.json")
    parser.add_argument("--leave-out", action="store_true", help="also leave out models and cards one at a time")
    parser.add_argument("--folds", type=int, default=10**6, help="leave out this many groups instead of each alone")
    parser.add_argument("--rows", action="store_true", help="show every row")
    arguments = parser.parse_args()
    data = gather()
    calibration = fit_all(data)
    for name, rows in data.items():
        for kind in ("decode", "prefill"):
            if of(rows, kind):
                print(line(f"{name} {kind}", errors_of(of(rows, kind), calibration)))
    if arguments.rows:
        for name, rows in data.items():
            for row, error in zip(rows, errors_of(rows, calibration), strict=True):
                what = f"{name:8} {row.kind:8} {row.device:26} {row.model:34} {row.quant:8} {row.args:26}"
                where = f"p{row.n_prompt:<6} d{row.n_depth:<6} {row.type_k:5}"
                print(f"{what} {where} {row.measured:9.1f} {error:+7.1%}")
    if arguments.leave_out:
        leave_out(data, calibration, arguments.folds)
    calibration = with_ranges(data, calibration)
    for name, constants in calibration.backends.items():
        prefill = constants.spread_prefill["GDDR"]
        print(f"ranges {name}: decode {rounded(dict(constants.spread_decode))}, prefill {prefill:.2f}")
    if arguments.write:
        write(calibration)


def rounded(value: object) -> object:
    if isinstance(value, float):
        return float(f"{value:.3g}")
    return {k: rounded(v) for k, v in value.items()} if isinstance(value, dict) else value


def write(calibration: Calibration) -> None:
    backends = {name: rounded(asdict(constants)) for name, constants in calibration.backends.items()}
    told = {"source": "constants fitted to published and own runs (docs/speed.md)",
            "staged_bytes_per_s": rounded(calibration.staged_bytes_per_s),
            "unmeasured_ram": UNMEASURED_RAM, "unmeasured_ram_is": UNMEASURED_RAM_IS, "backends": backends}  # fmt: skip
    (ROOT / "data" / "speed_calibration.json").write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
