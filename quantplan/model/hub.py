"""The hub, through huggingface_hub: listing, authentication, byte ranges; every failure as an error of ours.

The only module that imports huggingface_hub (0.2 s), and only once something is asked.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

from quantplan import errors
from quantplan.model.ranges import OpenRange, RangeAnswer
from quantplan.model.repository import Repository, repository_of

N_ATTEMPTS = 3
CHUNK_BYTES = 64 * 1024
MAX_REDIRECTS = 5
MAX_SMALL_BODY_BYTES = 1_000_000
MAX_ANSWER_S = 120.0  # for a whole answer: one byte every few seconds is no answer
PASSING = (408, 429, 500, 502, 503, 504)  # says nothing of the address: another time it may be answered
PLAIN = {"Accept-Encoding": "identity"}  # nothing to unpack: what arrives is as long as it is said to be
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
T = TypeVar("T")


class Hub:
    """What we ask of the hub. The endpoint and token are huggingface_hub's own (HF_ENDPOINT, HF_TOKEN, login)
    unless given."""

    def __init__(
        self, *, endpoint: str | None = None, token: str | None = None, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        from huggingface_hub import HfApi, constants

        self._api = HfApi(endpoint=endpoint, token=token)
        self._timeout_s = float(constants.HF_HUB_DOWNLOAD_TIMEOUT)
        self._sleep = sleep
        self._final_urls: dict[str, str] = {}  # where a file was redirected to: saves a request for its next range

    @property
    def endpoint(self) -> str:
        return str(self._api.endpoint)

    def repository(self, repo: str, revision: str | None = None) -> Repository:
        """The files of a repository at a branch, tag or commit (None: its main branch), pinned to a commit."""
        where = _Where(repo=repo, revision=revision, url=f"{self.endpoint}/{repo}")

        def ask() -> Repository:
            told = self._api.model_info(repo, revision=revision, files_metadata=True, timeout=self._timeout_s)
            return repository_of(told, asked=repo, url=where.url)

        return self._ask(ask, where)

    def read(self, repo: str, commit: str, file: str, *, max_bytes: int) -> bytes:
        """A whole small file. Raises BadModelFile where it is larger than max_bytes."""
        url = self._url(repo, commit, file)
        where = _Where(repo=repo, revision=commit, file=file, url=url)

        def fetch() -> bytes:
            content = bytearray()
            with self._open(url, PLAIN, where) as response:
                for piece in _chunks(response, where):
                    content += piece
                    if len(content) > max_bytes:
                        raise errors.BadModelFile(path=f"{repo}/{file}", why=f"has more than {max_bytes >> 20} MiB")
            return bytes(content)

        return self._ask(fetch, where)

    def ranges(self, repo: str, commit: str, file: str, *, max_s: float = MAX_ANSWER_S) -> OpenRange:
        """Byte ranges of a file of a repository; an answer that takes longer than max_s is given up."""
        url = self._url(repo, commit, file)
        return self._ranges(url, _Where(repo=repo, revision=commit, file=file, url=url), max_s=max_s)

    def kept_by_client(self, repo: str, commit: str, file: str, digest: str | None) -> Path | None:
        """The file where huggingface_hub's own cache holds it: of this commit, or of another with the same content."""
        from huggingface_hub import constants, try_to_load_from_cache
        from huggingface_hub.file_download import repo_folder_name

        found = try_to_load_from_cache(repo, file, revision=commit)
        if isinstance(found, str):
            return Path(found)
        if digest is None:
            return None
        blob = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model") / "blobs" / digest
        return blob if blob.is_file() else None

    def url_ranges(self, url: str) -> OpenRange:
        """Byte ranges of any http(s) address; no token is sent but to the hub itself."""
        return self._ranges(url, _Where(url=url))

    def _url(self, repo: str, commit: str, file: str) -> str:
        from huggingface_hub import hf_hub_url

        return hf_hub_url(repo, file, revision=commit, endpoint=self.endpoint)

    def _ranges(self, url: str, where: _Where, *, max_s: float = MAX_ANSWER_S) -> OpenRange:
        @contextmanager
        def open_range(start: int, end: int | None) -> Iterator[RangeAnswer]:
            header = {**PLAIN, "Range": f"bytes={start}-{'' if end is None else end - 1}"}
            opened = self._ask(lambda: _Entered(self._open(url, header, where)), where)
            with opened as response:
                yield _answer(response, where, start=start, max_s=max_s)

        return open_range

    @contextmanager
    def _open(self, url: str, headers: Mapping[str, str], where: _Where) -> Iterator[Any]:
        """An open answer after redirects. The token goes to the hub's own address only."""
        from huggingface_hub.utils import get_session, hf_raise_for_status  # type: ignore[attr-defined]

        at = self._final_urls.get(url, url)
        for _ in range(MAX_REDIRECTS + 1):
            sent = {**self._headers_for(at), **headers}
            with get_session().stream(
                "GET", at, headers=sent, follow_redirects=False, timeout=self._timeout_s
            ) as response:
                if int(response.headers.get("content-length") or 0) <= MAX_SMALL_BODY_BYTES and not response.is_success:
                    response.read()  # what an error says; and the connection can be used again
                if response.is_redirect:
                    at = _next_url(at, response.headers.get("location", ""), where)
                    continue
                if response.status_code >= 400 and at != url:
                    was_kept = self._final_urls.pop(url, None) is not None
                    if response.status_code not in PASSING:
                        if was_kept:
                            at = url  # a signed address has its time: the hub gives a new one
                            continue
                        raise errors.HubRedirectRefused(url=where.url, status=response.status_code)
                hf_raise_for_status(response)
                self._final_urls[url] = at
                yield response
                return
        raise errors.HubFailed(url=where.url, status=302, why="redirects without end")

    def _headers_for(self, url: str) -> dict[str, str]:
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        own = urlsplit(url)[:2] == urlsplit(self.endpoint)[:2]
        headers: dict[str, str] = build_hf_headers(token=self._api.token if own else False)
        return headers

    def _ask(self, ask: Callable[[], T], where: _Where) -> T:
        """The answer, tried again where the connection broke or the server said it failed (5xx)."""
        for attempt in range(N_ATTEMPTS):
            try:
                return ask()
            except Exception as error:
                known = error if isinstance(error, errors.QuantplanError) else _translate(error, where)
                if known is None:
                    raise
                if attempt + 1 == N_ATTEMPTS or not _may_pass(error.__cause__ or error):
                    if known is error:
                        raise
                    raise known from error
            self._sleep(0.2 * 4**attempt)
        raise AssertionError("unreachable")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Where:
    """What was asked for, for messages."""

    url: str
    repo: str | None = None
    revision: str | None = None
    file: str | None = None


class _Entered(AbstractContextManager[Any]):
    """A context that is entered when made, so that opening can be tried again while reading is not."""

    def __init__(self, inner: AbstractContextManager[Any]) -> None:
        self._inner, self._value = inner, inner.__enter__()

    def __enter__(self) -> Any:
        return self._value

    def __exit__(self, *exc: Any) -> bool | None:
        return self._inner.__exit__(*exc)


def _answer(response: Any, where: _Where, *, start: int, max_s: float) -> RangeAnswer:
    told = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
    if response.status_code == 206:
        if told is None or int(told[1]) != start:
            raise errors.HubFailed(url=where.url, status=206, why="with another range than asked")
        size = None if told[3] == "*" else int(told[3])
    elif start:
        raise errors.HubNoRanges(url=where.url, status=response.status_code)
    else:
        size = int(response.headers["content-length"]) if "content-length" in response.headers else None
    return RangeAnswer(chunks=_chunks(response, where, max_s), file_bytes=size, is_whole=response.status_code != 206)


def _chunks(response: Any, where: _Where, max_s: float = MAX_ANSWER_S) -> Iterator[bytes]:
    start = time.monotonic()
    try:
        for piece in response.iter_raw(CHUNK_BYTES):
            yield piece
            if time.monotonic() - start > max_s:
                raise errors.HubUnreachable(url=where.url, why=f"the answer is not complete after {max_s:.0f} s")
    except errors.QuantplanError:
        raise
    except Exception as error:
        known = _translate(error, where)
        if known is None:
            raise
        raise known from error


def _next_url(url: str, location: str, where: _Where) -> str:
    try:
        target = urljoin(url, location)
        scheme = urlsplit(target).scheme
    except ValueError:
        raise errors.HubFailed(url=where.url, status=302, why="redirects to what is no address") from None
    if scheme not in ("https", urlsplit(url).scheme):
        raise errors.HubFailed(url=where.url, status=302, why="redirects away from https")
    return target


def _may_pass(error: BaseException) -> bool:
    """Whether asking again may help: a broken connection or a 5xx, not a refusal, a timeout or a missing network."""
    name = type(error).__name__
    response = getattr(error, "response", None)
    if response is not None:
        return int(response.status_code) in (500, 502, 503, 504)
    return name in ("ReadError", "WriteError", "RemoteProtocolError", "CloseError")


def _translate(error: Exception, where: _Where) -> errors.QuantplanError | None:
    """Our error for one of huggingface_hub's or its HTTP library's; None for one that is neither."""
    from huggingface_hub import errors as hub

    repo = where.repo or where.url
    if isinstance(error, hub.OfflineModeIsEnabled):
        return errors.HubOffline(model=repo)
    if isinstance(error, hub.GatedRepoError):  # a subclass of RepositoryNotFoundError: ask this first
        return errors.RepositoryGated(repo=repo, has_token=_sent_token(error))
    if isinstance(error, hub.RepositoryNotFoundError):
        return errors.RepositoryNotFound(repo=repo)
    if isinstance(error, hub.RevisionNotFoundError):
        return errors.RevisionNotFound(repo=repo, revision=where.revision or "main")
    if isinstance(error, hub.EntryNotFoundError):
        return errors.HubFileNotFound(repo=repo, file=where.file or where.url)
    if isinstance(error, hub.HFValidationError):
        return errors.UnknownModel(model=repo)
    if isinstance(error, hub.HfHubHTTPError):
        return _from_status(error, where)
    http_error = hub.HfHubHTTPError.__mro__[1]  # HTTPError of httpx or httpx2, whichever it was built on
    if isinstance(error, http_error) or type(error).__name__ == "InvalidURL":
        return errors.HubUnreachable(url=where.url, why=_why(error))
    if isinstance(error, (ValueError, KeyError, TypeError, AttributeError)) and where.file is None:
        return errors.HubFailed(url=where.url, status=200, why="with something else than a model's description")
    return None


def known_error(error: Exception, *, url: str, repo: str, revision: str | None = None) -> errors.QuantplanError | None:
    """Our error for one that huggingface_hub raised; None for one that is not its own."""
    return _translate(error, _Where(url=url, repo=repo, revision=revision))


def _from_status(error: Any, where: _Where) -> errors.QuantplanError:
    status, headers = int(error.response.status_code), error.response.headers
    if status == 429:
        return errors.HubRateLimited(url=where.url, retry_after_s=_retry_after(headers))
    if status == 401 and where.repo is not None:
        if "Invalid credentials" in str(headers.get("X-Error-Message", "")):
            return errors.HubTokenRefused(repo=where.repo)
        return errors.RepositoryNotFound(repo=where.repo)
    if status == 404 and where.repo is not None and where.file is None:
        return errors.RepositoryNotFound(repo=where.repo)
    return errors.HubFailed(url=where.url, status=status, why=str(headers.get("X-Error-Message", ""))[:200])


def _retry_after(headers: Mapping[str, str]) -> int | None:
    """Seconds of Retry-After, or of the hub's own `ratelimit` header (t=…)."""
    plain = headers.get("retry-after", "").strip()
    if plain.isdigit():
        return int(plain)
    told = re.search(r"\bt=(\d+)", headers.get("ratelimit", ""))
    return int(told[1]) if told else None


def _sent_token(error: Any) -> bool:
    return "authorization" in error.response.request.headers


def _why(error: Exception) -> str:
    if "Timeout" in type(error).__name__:
        return "no answer in time"
    return f"no connection ({str(error) or type(error).__name__})"
