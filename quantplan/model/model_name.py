"""MODEL as people write it, taken apart: `org/name@revision`, `org/name:Q4_K_M`, `org/name/file.gguf`, an address."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from quantplan.errors import UnknownModel

_ID = re.compile(r"(?P<repo>[\w.\-]+/[\w.\-]+)(?P<file>/[^@:]+\.gguf)?(?P<rest>(?:[@:].*)?)", re.ASCII)
_REST = re.compile(r"(?:@(?P<revision>[^:@]+))?(?::(?P<quant>[\w.\-]+))?(?:@(?P<late>[^:@]+))?", re.ASCII)
_HUB_PAGE = re.compile(
    r"/(?P<repo>[\w.\-]+/[\w.\-]+)(?:/(?:tree|blob|resolve)/(?P<revision>[^/]+)(?:/(?P<file>.+))?)?/?"
)
MAIN_HUB = "huggingface.co"


@dataclass(frozen=True, slots=True, kw_only=True)
class HubName:
    """A model on the hub. At most one of `quant` and `file` is given; a revision of None is the main branch."""

    repo: str
    revision: str | None = None
    quant: str | None = None
    file: str | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it is just `org/name`, which the catalog may answer."""
        return self.revision is None and self.quant is None and self.file is None


def hub_name(text: str) -> HubName | None:
    """A name on the hub, or None where the text cannot be one."""
    match = _ID.fullmatch(text)
    rest = _REST.fullmatch(match["rest"]) if match else None
    if match is None or rest is None or not _is_repo(match["repo"]):
        return None
    if (rest["revision"] and rest["late"]) or (match["file"] and rest["quant"]):
        return None
    file = match["file"][1:] if match["file"] else None
    return HubName(repo=match["repo"], revision=rest["revision"] or rest["late"], quant=rest["quant"], file=file)


def hub_name_of_url(url: str, *, endpoint: str) -> HubName | None:
    """What an address of the hub's own pages or files names; None for any other address.

    Raises UnknownModel for what is no address at all.
    """
    try:
        asked, own = urlsplit(url), urlsplit(endpoint)
    except ValueError:
        raise UnknownModel(model=url) from None
    if asked.netloc not in (own.netloc, MAIN_HUB):
        return None
    match = _HUB_PAGE.fullmatch(unquote(asked.path))
    if match is None or not _is_repo(match["repo"]):
        return None
    if match["revision"] is None and match["repo"].endswith(".gguf"):
        return None  # a file that lies there, not a page
    file = match["file"]
    return HubName(
        repo=match["repo"], revision=match["revision"], file=file if file and file.endswith(".gguf") else None
    )


def _is_repo(repo: str) -> bool:
    return not any(part in (".", "..") or part.startswith((".", "-")) for part in repo.split("/"))
