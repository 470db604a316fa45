"""An artifact to the hub: everything checked first, then one atomic commit of files, receipt, results and card.

Large files are sent before the commit and are nothing until it: whoever looks sees the repository as it was, or with
the whole artifact and a card that tells of it. A run that was cut off anywhere is begun again; what the hub has is
not sent twice.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from quantplan import errors
from quantplan.artifact.receipt import NAME
from quantplan.artifact.sign import SIGNATURE, is_signed
from quantplan.artifact.store import Artifact, find_artifact, gate_objection, read_artifact
from quantplan.model.hub import Hub
from quantplan.model.hub_push import HubWriter, Upload
from quantplan.model.repository import HubFile, Repository
from quantplan.pipeline.push_card import licence_of, repository_card
from quantplan.pipeline.push_repository import CARD, Remote, check_names, keeps_theirs, read_remote
from quantplan.pipeline.verify import PLAN, verify_artifact

N_ATTEMPTS = 5  # at the commit: others may commit first, or the answer is lost
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where to publish, and how."""

    repo: str  # org/name, or a name of the token's own account
    revision: str | None = None
    private: bool = False
    base_model: str | None = None
    allow_unvalidated: bool = False
    public_key: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A push that nothing stands in the way of. `parent` is None where the repository or branch is still to be made."""

    repo: str
    artifact: Artifact
    uploads: tuple[Upload, ...]
    unchanged: tuple[str, ...]
    creates_repo: bool
    creates_branch: bool
    parent: str | None
    card: str
    warnings: tuple[str, ...]

    @property
    def upload_bytes(self) -> int:
        return sum(one.path.stat().st_size if one.path else len(one.content) for one in self.uploads)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """What became of it. `commit` is that of the repository now; `sent` are the names that this run committed."""

    repo: str
    commit: str
    sent: tuple[str, ...]
    unchanged: tuple[str, ...]


class Push:
    """One artifact and one repository."""

    def __init__(self, artifact: Path, target: Target, *, reader: Hub, writer: HubWriter) -> None:
        self._given, self._target, self._reader, self._writer = artifact, target, reader, writer
        self._verified: Artifact | None = None

    def examine(self) -> Ready:
        """Every check, the cheap ones first; nothing is changed.

        Raises BadArtifact (no artifact, not verified, no pass), HubNoToken, HubTokenRefused, HubNotWritable,
        HubNameTaken or another HubError.
        """
        artifact = self._artifact()
        repo = self.writable()
        with tempfile.TemporaryDirectory(prefix="quantplan-push-") as place:
            remote = self._remote(repo, Path(place) / "there")
            same, theirs_stays = self._compare(remote, artifact)
            self._verify(artifact)
            card = self._card(repo, remote, artifact, Path(place) / "after", theirs_stays=theirs_stays)
        wanted = (*_files(artifact, theirs_stays=theirs_stays), Upload(name=CARD, content=card.encode()))
        known = remote.files if remote else {}
        unchanged = {one.name for one in wanted if one.name in same or _is_there(known.get(one.name), one)}
        _check_results(repo, known, wanted, unchanged)
        return Ready(
            repo=repo, artifact=artifact, uploads=tuple(one for one in wanted if one.name not in unchanged),
            unchanged=tuple(sorted(unchanged)), creates_repo=self._new_repo,
            creates_branch=remote is None and not self._new_repo, parent=remote.repository.commit if remote else None,
            card=card, warnings=(*(remote.warnings if remote else ()), *self._doubts(artifact)),
        )  # fmt: skip

    def run(self, ready: Ready, *, tell: Tell, sleep: Callable[[float], None] = time.sleep) -> Pushed:
        """Uploads and commits. Where others commit first, or an answer is lost, everything is compared anew."""
        sent: tuple[str, ...] = ()
        for attempt in range(N_ATTEMPTS):
            if attempt:
                ready = self.examine()
            if not ready.uploads and ready.parent is not None:
                return Pushed(repo=ready.repo, commit=ready.parent, sent=sent, unchanged=ready.unchanged)
            try:
                self._make(ready)
                if ready.parent is None:
                    ready = self.examine()
                assert ready.parent is not None
                sent = tuple(one.name for one in ready.uploads)
                self._writer.commit(
                    ready.repo, ready.uploads, revision=self._target.revision, parent=ready.parent, tell=tell,
                    message=f"{ready.artifact.folder.name}: file, receipt, results and card (quantplan)",
                )  # fmt: skip
            except (errors.HubMoved, errors.HubUnreachable, errors.HubFailed) as error:
                if attempt + 1 == N_ATTEMPTS or not _may_pass(error):
                    raise
                tell(f"{error}: compared anew")
                sleep(0.5 * 2**attempt)
        final = self.examine()
        if final.uploads or final.parent is None:
            raise errors.HubMoved(repo=ready.repo)
        return Pushed(repo=ready.repo, commit=final.parent, sent=sent, unchanged=final.unchanged)

    def _artifact(self) -> Artifact:
        artifact = find_artifact(self._given)
        artifact = Artifact(folder=artifact.folder.resolve(), receipt=artifact.receipt, gate=artifact.gate)
        objection = gate_objection(artifact)
        if objection is not None and not self._target.allow_unvalidated:
            raise errors.BadArtifact(path=artifact.folder, why=f"{objection}: it was not published")
        return artifact

    def _doubts(self, artifact: Artifact) -> tuple[str, ...]:
        objection = gate_objection(artifact)
        return (f"publishing what is not validated, as asked: {objection}",) if objection else ()

    def writable(self) -> str:
        """The whole name of a repository that the token may write to, or make."""
        asked = self._target.repo
        account = self._writer.account(asked)
        repo = asked if "/" in asked else f"{account.name}/{asked}"
        if account.role == "read":
            raise errors.HubNotWritable(repo=repo, why="it is a token for reading only")
        self._found, self._new_repo = self._find(repo)
        if self._new_repo:
            owner = repo.partition("/")[0]
            if owner not in (account.name, *account.orgs):
                why = f"it is {account.name}'s, who is not {owner} and no member of it"
                raise errors.HubNotWritable(repo=repo, why=why)
            return repo
        self._writer.check_write(repo)
        return repo

    def _find(self, repo: str) -> tuple[Repository | None, bool]:
        """The repository at the branch; (None, False) where only the branch is missing, (None, True) without both."""
        try:
            found = self._reader.repository(repo, self._target.revision)
        except errors.RevisionNotFound:
            return None, False
        except errors.RepositoryNotFound:
            return None, True
        if found.id.lower() != repo.lower():
            raise errors.HubNameTaken(repo=repo, name="the name", why=f"the repository is now called {found.id}")
        return found, False

    def _remote(self, repo: str, place: Path) -> Remote | None:
        return read_remote(self._reader, self._found, place) if self._found is not None else None

    def _compare(self, remote: Remote | None, artifact: Artifact) -> tuple[tuple[str, ...], bool]:
        """The files that are there, and whether the receipt there is kept. Raises HubNameTaken."""
        if remote is None:
            return (), False
        keeps = keeps_theirs(remote, artifact)
        return check_names(remote, artifact.folder.name, artifact.receipt.files), keeps

    def _verify(self, artifact: Artifact) -> None:
        """Everything hashed, once a run. Raises BadArtifact with the first thing that does not match."""
        if self._verified == artifact:
            return
        found = verify_artifact(artifact.folder, public_key=self._target.public_key)
        wrong = next((one for one in found.findings if one.severity.value == "error"), None)
        if wrong is not None:
            raise errors.BadArtifact(
                path=artifact.folder / (wrong.file or ""), why=f"{wrong.message}: it was not published"
            )
        self._verified = artifact

    def _card(self, repo: str, remote: Remote | None, own: Artifact, place: Path, *, theirs_stays: bool) -> str:
        """The card of all artifacts that will lie there, ours from the results of both places."""
        there = remote.folder / own.folder.name if remote else None
        _merge(place / own.folder.name, own, there, theirs_stays=theirs_stays)
        others = [one for one in (remote.artifacts() if remote else ()) if one.folder.name != own.folder.name]
        both = sorted((*others, read_artifact(place / own.folder.name)), key=lambda one: one.folder.name)
        text = own.folder / CARD
        licence = licence_of(own.receipt, text.read_text(encoding="utf-8") if text.is_file() else None)
        before = remote.card if remote else None
        return repository_card(repo, both, before=before, licence=licence, base=self._target.base_model)

    def _make(self, ready: Ready) -> None:
        if ready.creates_repo:
            self._writer.create(ready.repo, private=self._target.private)
        if self._target.revision is not None and (ready.creates_branch or ready.creates_repo):
            self._writer.create_branch(ready.repo, self._target.revision)


def _merge(target: Path, own: Artifact, there: Path | None, *, theirs_stays: bool) -> None:
    """The small files of an artifact as the repository will have them."""
    target.mkdir(parents=True)
    (target / "results").mkdir()
    for folder in (there, own.folder):
        for path in sorted((folder / "results").glob("gate-*.json")) if folder else ():
            (target / "results" / path.name).write_bytes(path.read_bytes())
    source = there if theirs_stays and there else own.folder
    (target / NAME).write_bytes((source / NAME).read_bytes())


def _files(artifact: Artifact, *, theirs_stays: bool) -> Iterator[Upload]:
    """All that belongs to an artifact, by its name in the repository. A receipt that is there stays, and a signature
    is of the receipt it was made for."""
    folder, name = artifact.folder, artifact.folder.name
    for entry in artifact.receipt.files:
        yield Upload(name=f"{name}/{entry.name}", path=folder / entry.name, sha256=entry.sha256)
    small = [] if theirs_stays else [NAME, PLAN, *([SIGNATURE] if is_signed(folder) else [])]
    for one in small:
        if (folder / one).is_file():
            yield Upload(name=f"{name}/{one}", content=(folder / one).read_bytes())
    for path in sorted((folder / "results").glob("*.json")):
        yield Upload(name=f"{name}/results/{path.name}", content=path.read_bytes())


def _is_there(there: HubFile | None, one: Upload) -> bool:
    if there is None:
        return False
    if one.path is not None:
        return there.sha256 == one.sha256
    if there.sha256 is not None:  # the hub keeps it as a large file
        return there.sha256 == hashlib.sha256(one.content).hexdigest()
    return there.digest is not None and there.is_content(one.content)


def _check_results(repo: str, known: dict[str, HubFile], wanted: tuple[Upload, ...], unchanged: set[str]) -> None:
    """Only the card, and an artifact's own plan and signature, are ever written over. Raises HubNameTaken."""
    for one in wanted:
        may = one.name == CARD or one.name.rpartition("/")[2] in (PLAN, SIGNATURE)
        if not may and one.name in known and one.name not in unchanged:
            raise errors.HubNameTaken(repo=repo, name=one.name, why="the file there has another content")


def _may_pass(error: errors.HubError) -> bool:
    """Whether comparing anew may help: a broken connection, a server that failed, or others who were first."""
    return not isinstance(error, errors.HubFailed) or error.status in (408, 500, 502, 503, 504)
