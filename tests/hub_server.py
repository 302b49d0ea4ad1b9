"""A Hugging Face Hub on the loopback address: as much of its protocol as its real clients ask for here.

Repositories are mappings of paths to bytes. A server can be told to break connections, or be stopped in the middle.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlparse

COMMIT = "c0ffee" + "0" * 34
LAST_MODIFIED = "2026-11-01T00:00:00.000Z"
Files = dict[str, bytes]


class HubServer(ThreadingHTTPServer):
    """``repositories``: "models/owner/name" or "datasets/owner/name" -> files. ``requests`` lists what was asked."""

    daemon_threads = True

    def __init__(self, repositories: dict[str, Files]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories = repositories
        self.killed = False
        self._etags: dict[int, tuple[bytes, str]] = {}
        self.commit = COMMIT
        self.requests: list[tuple[str, str, str | None]] = []  # method, path, range
        self.sent: dict[str, int] = {}  # bytes of content by owner/name/path
        # Asked before each piece of a file: owner/name/path and bytes sent of this answer; True breaks the connection.
        self.breaks: Callable[[str, int], bool] = lambda path, sent: False
        self.status: Callable[[str], int | None] = lambda path: None  # another answer than the file

    def kill(self) -> None:
        """As a machine that is switched off: open connections break, and nobody answers new ones."""
        self.killed = True
        self.shutdown()
        self.server_close()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no error of the server."""

    def etag(self, content: bytes) -> str:
        if id(content) not in self._etags:  # hashed once: GPT-2's file has 154 MB
            self._etags[id(content)] = content, hashlib.sha256(content).hexdigest()
        return self._etags[id(content)][1]


@contextmanager
def hub_server(repositories: dict[str, Files]) -> Iterator[HubServer]:
    server = HubServer(repositories)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.kill()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlparse(self.path).path)
        if self.server.killed:
            self.close_connection = True
            return
        self.server.requests.append((self.command, path, self.headers.get("Range")))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        for pattern, method in _ROUTES:
            if found := re.fullmatch(pattern, path):
                method(self, body, **found.groupdict())
                return
        self._error(404, "EntryNotFound", f"no such address: {path}")

    # --- Files

    def _file(self, body: bytes, kind: str | None, repo: str, revision: str, path: str) -> None:
        if (files := self._repository(kind or "models", repo, revision)) is None:
            return
        status = self.server.status(f"{repo}/{path}")
        if path not in files or status:
            self._error(status or 404, "EntryNotFound" if status in (None, 404) else None, path)
            return
        content = files[path]
        first, last = self._range(len(content))
        partial = "Range" in self.headers
        self.send_response(206 if partial else 200)
        self.send_header("X-Repo-Commit", self.server.commit)
        self.send_header("ETag", f'"{self.server.etag(content)}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(max(0, last + 1 - first)))
        if partial:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.end_headers()
        if self.command != "HEAD":
            self._send_pieces(f"{repo}/{path}", content[first : last + 1])

    def _send_pieces(self, path: str, content: bytes, size: int = 4096) -> None:
        for begin in range(0, len(content), size):
            if self.server.killed or self.server.breaks(path, begin):
                self.close_connection = True
                self.connection.close()
                return
            piece = content[begin : begin + size]
            self.wfile.write(piece)
            self.server.sent[path] = self.server.sent.get(path, 0) + len(piece)

    def _range(self, length: int) -> tuple[int, int]:
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not found:
            return 0, length - 1
        return int(found[1]), min(int(found[2]) if found[2] else length - 1, length - 1)

    # --- What a repository holds

    def _info(self, body: bytes, kind: str, repo: str, revision: str | None = None) -> None:
        if (files := self._repository(kind, repo, revision or "main")) is not None:
            siblings = [{"rfilename": path, "size": len(content)} for path, content in files.items()]
            self._json(
                {
                    "id": repo, "modelId": repo, "sha": self.server.commit, "private": False, "gated": False,
                    "disabled": False, "lastModified": LAST_MODIFIED, "createdAt": LAST_MODIFIED, "downloads": 0,
                    "likes": 0, "tags": [], "siblings": siblings,
                }
            )  # fmt: skip

    def _tree(self, body: bytes, kind: str, repo: str, revision: str, path: str | None = None) -> None:
        if (files := self._repository(kind, repo, revision)) is None:
            return
        folder = f"{path}/" if path else ""
        inside = [name for name in files if name.startswith(folder)]
        if folder and not inside:
            self._error(404, "EntryNotFound", folder)
            return
        entries = [self._entry(name, files[name]) for name in inside]
        parents = {"/".join(name.split("/")[:depth]) for name in inside for depth in range(1, name.count("/") + 1)}
        folders = [self._folder(name) for name in sorted(parents) if name.startswith(folder)]
        if "recursive=true" not in self.path.lower():
            entries = [entry for entry in entries if "/" not in entry["path"].removeprefix(folder)]
            folders = [entry for entry in folders if "/" not in entry["path"].removeprefix(folder)]
        self._json([*folders, *entries])

    def _paths(self, body: bytes, kind: str, repo: str, revision: str) -> None:
        if (files := self._repository(kind, repo, revision)) is None:
            return
        if (self.headers.get("Content-Type") or "").startswith("application/json"):
            paths = json.loads(body)["paths"]
        else:
            paths = [unquote(part.partition("=")[2]) for part in body.decode().split("&") if part.startswith("paths=")]
        found = [self._entry(path, files[path]) for path in paths if path in files]
        found += [self._folder(path) for path in paths if any(name.startswith(f"{path}/") for name in files)]
        self._json(found)

    def _entry(self, path: str, content: bytes) -> dict[str, Any]:
        commit = {"id": COMMIT, "title": "a commit", "date": LAST_MODIFIED}
        return {
            "type": "file", "path": path, "size": len(content), "oid": self.server.etag(content)[:40],
            "lastCommit": commit,
        }  # fmt: skip

    def _folder(self, path: str) -> dict[str, Any]:
        commit = {"id": COMMIT, "title": "a commit", "date": LAST_MODIFIED}
        return {"type": "directory", "path": path, "oid": "0" * 40, "size": 0, "lastCommit": commit}

    # --- Writing

    def _create(self, body: bytes) -> None:
        asked = json.loads(body)
        repo = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else f"me/{asked['name']}"
        if not self._allowed():
            return
        self.server.repositories.setdefault(f"models/{repo}", {})
        self._json({"url": f"{self.server.address}/{repo}", "id": repo, "name": repo})

    def _preupload(self, body: bytes, kind: str, repo: str, revision: str) -> None:
        paths = [one["path"] for one in json.loads(body)["files"]]
        self._json({"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]})

    def _commit(self, body: bytes, kind: str, repo: str, revision: str) -> None:
        if not self._allowed():
            return
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                content = base64.b64decode(entry["value"]["content"])
                self.server.repositories[f"{kind}/{repo}"][entry["value"]["path"]] = content
        self._json({"success": True, "commitOid": COMMIT, "commitUrl": f"{self.server.address}/{repo}/commit/{COMMIT}"})

    def _yaml(self, body: bytes) -> None:
        self._json({"errors": [], "warnings": []})

    def _allowed(self) -> bool:
        if self.headers.get("Authorization") == "Bearer hf_right":
            return True
        self._error(401, None, "Invalid username or password.")
        return False

    # --- Answers

    def _repository(self, kind: str, repo: str, revision: str) -> Files | None:
        files = self.server.repositories.get(f"{kind}/{repo}")
        if files is None:
            self._error(401, "RepoNotFound", "Repository not found")  # as the Hub answers who is not logged in
        elif revision not in ("main", self.server.commit):
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return files

    def _json(self, value: Any) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _error(self, status: int, code: str | None, message: str) -> None:
        content = json.dumps({"error": message}).encode()
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
_API = rf"/api/(?P<kind>models|datasets)/{_REPO}"
_ROUTES: list[tuple[str, Any]] = [
    ("/api/repos/create", _Handler._create),
    ("/api/validate-yaml", _Handler._yaml),
    (rf"{_API}/revision/(?P<revision>[^/]+)", _Handler._info),
    (rf"{_API}/tree/(?P<revision>[^/]+)(/(?P<path>.*))?", _Handler._tree),
    (rf"{_API}/paths-info/(?P<revision>[^/]+)", _Handler._paths),
    (rf"{_API}/preupload/(?P<revision>[^/]+)", _Handler._preupload),
    (rf"{_API}/commit/(?P<revision>[^/]+)", _Handler._commit),
    (_API, _Handler._info),
    (rf"/((?P<kind>datasets)/)?{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler._file),
]
