"""The writing half of the hub on loopback: whoami, repositories made, LFS uploads, atomic commits.

What the real client sends is answered as the hub does: modes by `preupload`, objects by the LFS batch (in parts above
`part_bytes`), a commit as NDJSON with the parent it wants. Objects without a commit are kept and belong to no file.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from loopback_hub import LoopbackHub


@dataclass
class Writes:
    """What may be written, and what has been. `role`: read | write | fineGrained."""

    user: str = "me"
    orgs: tuple[str, ...] = ("org",)
    role: str = "write"
    read_only: set[str] = field(default_factory=set)  # repositories that this token may only read
    part_bytes: int = 1 << 30  # files above go in parts of this size
    objects: dict[str, bytes] = field(default_factory=dict)  # uploaded, by sha256
    parts: dict[tuple[str, int], bytes] = field(default_factory=dict)
    received_bytes: int = 0  # of large files
    commits: list[dict[str, Any]] = field(default_factory=list)  # what each commit changed
    states: list[dict[str, str]] = field(default_factory=list)  # the hash of every file after each commit


class WriteHandler:
    """Answers for `_Handler`: the methods return whether the request was one of theirs."""

    owner: LoopbackHub
    path: str
    headers: Any
    rfile: Any

    def _answer(self, status: int, body: Any, headers: Any = None) -> None: ...

    def write_route(self, method: str) -> bool:
        url = urlsplit(self.path)
        path = unquote(url.path)
        content = self._content()
        if path == "/api/whoami-v2":
            return self._whoami()
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/auth-check(/write)?", path):
            return self._auth_check(match[1], bool(match[2]))
        if match := re.fullmatch(r"/lfs/([0-9a-f]{64})(?:/(\d+))?", path):
            return self._object(match[1], match[2], content, method)
        if method != "POST":
            return False
        if path == "/api/repos/create":
            return self._create(json.loads(content))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/(.+)", path):
            return self._allowed(match[1]) and self._branch(match[1], match[2])
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/(.+)", path):
            return self._allowed(match[1]) and self._preupload(match[1], json.loads(content))
        if match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return self._allowed(match[1]) and self._batch(json.loads(content))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", path):
            return self._allowed(match[1]) and self._commit_to(match[1], match[2], content)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/paths-info/(.+)", path):
            return self._paths_info(match[1], content)
        return False

    def _content(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _json(self, told: Any, status: int = 200) -> bool:
        self._answer(status, json.dumps(told).encode(), {"Content-Type": "application/json"})
        return True

    def _known_token(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {self.owner.token}":
            return True
        self._answer(401, b'{"error": "Invalid username or password."}', {"X-Error-Message": "Invalid credentials"})
        return False

    def _allowed(self, repo: str) -> bool:
        """Whether the token may write to a repository that is there; else the refusal was sent."""
        if not self._known_token():
            return True
        if repo not in self.owner.repositories:
            self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif self.owner.writes.role == "read" or repo in self.owner.writes.read_only:
            self._json({"error": "You don't have the required permissions"}, 403)
        else:
            return True
        return True

    def _may(self, repo: str) -> bool:
        writes = self.owner.writes
        token = self.headers.get("Authorization") == f"Bearer {self.owner.token}"
        return token and repo in self.owner.repositories and writes.role != "read" and repo not in writes.read_only

    def _whoami(self) -> bool:
        if self._known_token():
            writes = self.owner.writes
            orgs = [{"name": name, "roleInOrg": "write"} for name in writes.orgs]
            token = {"displayName": "test", "role": writes.role}
            self._json({"type": "user", "name": writes.user, "orgs": orgs, "auth": {"accessToken": token}})
        return True

    def _auth_check(self, repo: str, write: bool) -> bool:
        if write and not self._may(repo):
            return self._allowed(repo)
        return self._json({})

    def _create(self, told: dict[str, Any]) -> bool:
        if not self._known_token():
            return True
        owner = told.get("organization") or self.owner.writes.user
        repo = f"{owner}/{told['name']}"
        if self.owner.writes.role == "read" or owner not in (self.owner.writes.user, *self.owner.writes.orgs):
            return self._json({"error": "You don't have the rights to create a model under this namespace"}, 403)
        url = f"{self.owner.url}/{repo}"
        if repo in self.owner.repositories:
            return self._json({"error": "You already created this model repo", "url": url, "name": repo}, 409)
        private = told.get("visibility") == "private" or bool(told.get("private"))
        self.owner.add(repo, {".gitattributes": b"*.gguf filter=lfs diff=lfs merge=lfs -text\n"}, private=private)
        return self._json({"url": url, "name": repo, "id": repo})

    def _branch(self, repo: str, branch: str) -> bool:
        if not self._may(repo):
            return True
        repository = self.owner.repositories[repo]
        if branch in repository.revisions:
            return self._json({"error": "Reference already exists"}, 409)
        repository.revisions[branch] = repository.commit
        repository.branch_files[branch] = dict(repository.files)
        return self._json({})

    def _preupload(self, repo: str, told: dict[str, Any]) -> bool:
        if not self._may(repo):
            return True
        files = self.owner.repositories[repo].files
        rows = []
        for file in told["files"]:
            assert len(base64.b64decode(file["sample"])) <= 512
            mode = "lfs" if file["path"].endswith(".gguf") else "regular"
            known = files.get(file["path"])
            oid = (known.sha256 if mode == "lfs" else known.blob_id) if known else None
            rows.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return self._json({"files": rows})

    def _batch(self, told: dict[str, Any]) -> bool:
        assert told["operation"] == "upload"
        rows: list[dict[str, Any]] = []
        for one in told["objects"]:
            row: dict[str, Any] = {"oid": one["oid"], "size": one["size"]}
            if one["oid"] not in self.owner.blobs and one["oid"] not in self.owner.writes.objects:
                row["actions"] = {"upload": self._upload_action(one["oid"], one["size"])}
            rows.append(row)
        return self._json({"transfer": "basic", "objects": rows})

    def _upload_action(self, oid: str, size: int) -> dict[str, Any]:
        href, part = f"{self.owner.url}/lfs/{oid}", self.owner.writes.part_bytes
        if size <= part:
            return {"href": href}
        parts = {str(no + 1): f"{href}/{no + 1}" for no in range(-(-size // part))}
        return {"href": href, "header": {"chunk_size": str(part), **parts}}

    def _object(self, oid: str, part: str | None, content: bytes, method: str) -> bool:
        writes = self.owner.writes
        if method == "PUT":
            writes.received_bytes += len(content)
            if part is not None:
                writes.parts[oid, int(part)] = content
                self._answer(200, b"", {"ETag": f'"{hashlib.md5(content).hexdigest()}"'})
                return True
        else:  # the end of an upload in parts
            told = json.loads(content)
            content = b"".join(writes.parts[oid, one["partNumber"]] for one in told["parts"])
        if hashlib.sha256(content).hexdigest() != oid:
            return self._json({"error": "the content has another sha256"}, 400)
        writes.objects[oid] = content
        self._answer(200, b"")
        return True

    def _paths_info(self, repo: str, content: bytes) -> bool:
        files = self.owner.repositories[repo].files
        from urllib.parse import parse_qs

        names = parse_qs(content.decode()).get("paths", [])
        rows = [{"type": "file", "path": n, "size": files[n].n_bytes, "oid": files[n].blob_id} for n in names
                if n in files]  # fmt: skip
        return self._json(rows)

    def _commit_to(self, repo: str, branch: str, content: bytes) -> bool:
        """All of a commit or none of it."""
        from loopback_hub import LARGE, FakeFile

        if not self._may(repo):
            return True
        repository, writes = self.owner.repositories[repo], self.owner.writes
        with self.owner.lock:
            on_main = branch == "main"
            at = repository.commit if on_main else repository.revisions.get(branch)
            lines = [json.loads(line) for line in content.splitlines()]
            header = lines[0]["value"]
            if at is None:
                return self._json({"error": "no such branch"}, 404)
            if header.get("parentCommit") not in (None, at):
                return self._json({"error": "A commit has happened since. Please refresh and try again."}, 412)
            files = dict(repository.files if on_main else repository.branch_files[branch])
            for line in lines[1:]:
                value = line["value"]
                if line["key"] == "file":
                    body = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    known = self.owner.blobs.get(value["oid"])
                    found = writes.objects.get(value["oid"], known.content if known else None)
                    if not isinstance(found, bytes):
                        return self._json({"error": f"LFS pointer {value['oid']} points to no object"}, 400)
                    body = found
                else:
                    return self._json({"error": line["key"]}, 400)
                blob = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
                made = FakeFile(body, hashlib.sha256(body).hexdigest(), blob)
                assert (line["key"] == "lfsFile") == value["path"].endswith(LARGE), value["path"]
                files[value["path"]] = made
                self.owner.blobs[made.sha256] = made
            told = json.dumps([at, {name: file.sha256 for name, file in files.items()}])
            commit = hashlib.sha1(told.encode()).hexdigest()
            if on_main:
                self.owner.repositories[repo] = replace(repository, files=files, commit=commit)
            else:
                repository.branch_files[branch], repository.revisions[branch] = files, commit
            writes.commits.append({"repo": repo, "summary": header["summary"],
                                   "paths": [line["value"]["path"] for line in lines[1:]]})  # fmt: skip
            writes.states.append({name: file.sha256 for name, file in files.items()})
        url = f"{self.owner.url}/{repo}/commit/{commit}"
        return self._json({"success": True, "commitUrl": url, "commitOid": commit})
