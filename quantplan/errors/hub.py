"""The hub: what it refuses, and what it gets wrong."""

from __future__ import annotations

from collections.abc import Sequence

from quantplan.errors.base import QuantplanError
from quantplan.errors.models import UnknownModel


class RepositoryNotFound(UnknownModel):
    """The hub has no such repository, or does not show it to us: it answers the same for missing and private."""

    def __init__(self, *, repo: str, near: Sequence[str] = ()) -> None:
        super().__init__(model=repo, near=near)
        like = f"; near names: {', '.join(near)}" if near else ""
        self.args = (f"the hub has no repository {repo!r}, or it is private and your token does not open it{like}",)
        self.repo = repo


class HubError(QuantplanError):
    """The hub refused or could not be asked."""


class RepositoryGated(HubError):
    """The repository is there, but its owner wants an agreement or an approval first."""

    def __init__(self, *, repo: str, has_token: bool) -> None:
        why = "your token's account has not been granted access" if has_token else "no token was given"
        super().__init__(f"{repo}: this repository is gated: {why}")
        self.repo, self.has_token = repo, has_token


class HubTokenRefused(HubError):
    """The token itself is invalid or expired."""

    def __init__(self, *, repo: str) -> None:
        super().__init__(f"{repo}: the hub does not accept the token (invalid or expired)")
        self.repo = repo


class RevisionNotFound(HubError):
    """The repository has no such branch, tag or commit."""

    def __init__(self, *, repo: str, revision: str) -> None:
        super().__init__(f"{repo}: no revision {revision!r}")
        self.repo, self.revision = repo, revision


class HubFileNotFound(HubError):
    """The repository has no such file at that revision."""

    def __init__(self, *, repo: str, file: str, choices: Sequence[str] = ()) -> None:
        like = f"; it has {', '.join(choices)}" if choices else ""
        super().__init__(f"{repo}: no file {file!r}{like}")
        self.repo, self.file, self.choices = repo, file, tuple(choices)


class HubRateLimited(HubError):
    """Too many requests; the hub says for how long, or does not (None)."""

    def __init__(self, *, url: str, retry_after_s: int | None) -> None:
        when = f"; try again in {retry_after_s} s" if retry_after_s is not None else ""
        super().__init__(f"{url}: rate limited by the server{when}")
        self.url, self.retry_after_s = url, retry_after_s


class HubOffline(HubError):
    """HF_HUB_OFFLINE is set, and the answer is neither cached nor in the catalog."""

    def __init__(self, *, model: str) -> None:
        super().__init__(
            f"{model}: the hub may not be asked (offline mode), and nothing about it is cached or in the catalog"
        )
        self.model = model


class HubUnreachable(HubError):
    """No answer: no network, no such host, a timeout or a broken connection."""

    def __init__(self, *, url: str, why: str) -> None:
        super().__init__(f"{url}: {why}")
        self.url, self.why = url, why


class HubFailed(HubError):
    """An answer that is neither the data nor a refusal we know."""

    def __init__(self, *, url: str, status: int, why: str = "") -> None:
        super().__init__(f"{url}: the server answered {status}{f' ({why})' if why else ''}")
        self.url, self.status, self.why = url, status, why


class HubNoRanges(HubFailed):
    """The server sends whole files only: a reading cannot be taken up in the middle."""

    def __init__(self, *, url: str, status: int) -> None:
        super().__init__(url=url, status=status, why="the server does not serve byte ranges")


class HubRedirectRefused(HubFailed):
    """The hub sent us to an address that does not answer us: its signature has run out, or the file is gone there."""

    def __init__(self, *, url: str, status: int) -> None:
        super().__init__(url=url, status=status, why="at the address that the hub redirects to")


class HubContentDiffers(HubError):
    """What arrives is not the file that the hub describes, time after time."""

    def __init__(self, *, repo: str, file: str, expected: str, found: str, n_attempts: int) -> None:
        super().__init__(
            f"{repo}/{file}: its hash is {found[:16]}… and the hub says {expected[:16]}…, "
            f"also when it is fetched again ({n_attempts} times): nothing of it was kept"
        )
        self.repo, self.file, self.expected, self.found = repo, file, expected, found


class HubNoToken(HubError):
    """Writing needs a token, and none was given or stored."""

    def __init__(self, *, repo: str) -> None:
        super().__init__(f"{repo}: nothing can be published without a token, and none was given or stored")
        self.repo = repo


class HubNotWritable(HubError):
    """The token is good, and may not write there."""

    def __init__(self, *, repo: str, why: str) -> None:
        super().__init__(f"{repo}: the token may not write there: {why}")
        self.repo, self.why = repo, why


class HubNameTaken(HubError):
    """What is to be published would take the place of something else."""

    def __init__(self, *, repo: str, name: str, why: str) -> None:
        super().__init__(f"{repo}: {name} is taken: {why}; nothing was changed")
        self.repo, self.name, self.why = repo, name, why


class HubMoved(HubError):
    """Somebody else committed to the repository meanwhile."""

    def __init__(self, *, repo: str) -> None:
        super().__init__(f"{repo}: the repository was changed by others while this was published")
        self.repo = repo


class TensorDiffers(HubError):
    """What the hub sends of a tensor is not what it sent when the whole file was proved, time after time."""

    def __init__(self, *, repo: str, file: str, tensor: str, n_attempts: int) -> None:
        super().__init__(
            f"{repo}/{file}: the bytes of {tensor} are not those of the file whose hash was proved, "
            f"also when they are read again ({n_attempts} times): nothing was made of them"
        )
        self.repo, self.file, self.tensor = repo, file, tensor
