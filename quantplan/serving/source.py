"""What is to be served: an artifact with its plan, or a plan with the model it names. Only what was validated."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from quantplan.artifact.plan_file import Plan, read_plan
from quantplan.artifact.receipt import NAME, sha256_of
from quantplan.artifact.store import Artifact, check_files, find_artifact, gate_objection
from quantplan.errors import BadArtifact, BadValue, NoArtifact, NotValidated

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A model file with its plan; `artifact` is None for a model without a receipt beside it."""

    model: Path
    plan: Plan
    artifact: Artifact | None

    @property
    def sha256(self) -> str | None:
        """What the receipt, or else the plan, says the model file's hash is."""
        if self.artifact is not None:
            return self.artifact.receipt.model_file.sha256
        known = self.plan.source.get("sha256")
        return str(known) if known else None

    @property
    def build_commit(self) -> str | None:
        """The commit of the engine that the artifact was made and measured with."""
        commit = self.artifact.receipt.tools.get("commit") if self.artifact else None
        return str(commit) if commit else None


def find_served(
    given: Path, *, plan_file: Path | None = None, model: Path | None = None, must_exist: bool = True
) -> Served:
    """By an artifact's folder, artifact.json or GGUF, or by a plan file. Raises BadArtifact, BadModelFile, BadValue.

    The model of a plan is the one named, else the file of the plan's source, beside the plan; without `must_exist` it
    may be missing, as where somebody else serves it.
    """
    if not is_plan(given):
        artifact = find_artifact(given)
        plan = read_plan(plan_file or artifact.folder / "plan.json")
        return Served(model=model or artifact.model, plan=plan, artifact=_owner(model) if model else artifact)
    plan = read_plan(given)
    found = model or _named_by(plan, given.parent, must_exist=must_exist)
    return Served(model=found, plan=plan, artifact=_owner(found))


def is_plan(path: Path) -> bool:
    """Whether a file is a plan, or a recommend document with one inside."""
    if path.suffix != ".json" or path.name == NAME or path.is_dir() or not path.exists():
        return False
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True  # to be refused by who reads it
    return isinstance(told, dict) and str(told.get("schema", "")).startswith(("quantplan/plan/", "quantplan/recommend"))


def _named_by(plan: Plan, folder: Path, *, must_exist: bool) -> Path:
    name = plan.source.get("file")
    if not name and must_exist:
        raise BadValue(what="plan", value=plan.model, why="names no model file: build it first, or name one")
    path = folder / str(name or f"{plan.model.rsplit('/', 1)[-1]}-{plan.quant}.gguf")
    if must_exist and not path.is_file():
        raise NoArtifact(path=path, why="is named by the plan and missing")
    return path


def _owner(model: Path | None) -> Artifact | None:
    """The artifact whose receipt names the file, or None."""
    if model is None or not (model.parent / NAME).is_file():
        return None
    artifact = find_artifact(model.parent)
    return artifact if artifact.model.name == model.name else None


def admit(served: Served, *, allow_unvalidated: bool, say: Say) -> None:
    """Hashes first, then the newest gate result. Raises BadArtifact.

    With the override a missing pass or receipt is said in the log; a changed file is refused all the same.
    """
    if served.artifact is not None:
        check_files(served.artifact)
        objection = gate_objection(served.artifact)
    else:
        _check_hash(served)
        objection = "has no receipt and no gate result"
    if objection is None:
        return
    if not allow_unvalidated:
        raise NotValidated(path=served.artifact.folder if served.artifact else served.model, why=objection)
    say(f"WARNING: serving an artifact that is not validated, as asked: {objection}")


def _check_hash(served: Served) -> None:
    if not served.model.is_file():
        raise NoArtifact(path=served.model, why="no such model file")
    if served.sha256 is None:
        return
    found = sha256_of(served.model)
    if found != served.sha256:
        raise BadArtifact(path=served.model, why=f"sha256 is {found[:16]}…, the plan says {served.sha256[:16]}…")
