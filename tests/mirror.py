"""A small hub on this machine: the routes that huggingface_hub and datasets ask, and the ways in which it can fail."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit

FILE = re.compile(r"/(?P<dataset>datasets/)?(?P<id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
API = re.compile(r"/api/(?P<kind>models|datasets)/(?P<id>[^/]+/[^/]+)(?:/(?P<what>\w[\w-]*)/(?P<revision>[^/]+).*)?")
TOKEN, STRANGER = "hf_of_one_who_may", "hf_of_one_who_has_not_accepted"


@dataclass
class Repository:
    """Files of each commit, names of commits, who may read it, and what is wrong with it.

    Attributes:
        access: ``public``, ``private`` (others are told that it does not exist), ``gated`` or ``forbidden`` to all.
        cut: bytes of a file after which the connection ends, and how many times that happens.
        slow: files that are never answered for.
    """

    commits: dict[str, dict[str, bytes]]
    refs: dict[str, str]
    access: str = "public"
    cut: dict[str, tuple[int, int]] = field(default_factory=dict)
    slow: frozenset[str] = frozenset()


def repository(*versions: dict[str, bytes], **options: object) -> Repository:
    """A repository with a commit for each version: tags v1, v2 and so on, and the branch main at the last."""
    names = [hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest() for files in versions]
    refs = {f"v{number}": name for number, name in enumerate(names, 1)} | {"main": names[-1]}
    return Repository(dict(zip(names, versions, strict=True)), refs, **options)  # type: ignore[arg-type]


class Mirror(http.server.ThreadingHTTPServer):
    """Serves ``repositories``, by ``models/id`` and ``datasets/id``; ``asked`` lists the requests."""

    daemon_threads = True

    def __init__(self, repositories: dict[str, Repository]) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.repositories, self.asked, self.closing = repositories, list[str](), threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serve(repositories: dict[str, Repository]) -> Iterator[Mirror]:
    mirror = Mirror(repositories)
    threading.Thread(target=mirror.serve_forever, daemon=True).start()
    try:
        yield mirror
    finally:
        mirror.closing.set()
        mirror.shutdown()
        mirror.server_close()


class _Refused(Exception):
    def __init__(self, status: int, code: str = "", message: str = "", commit: str = "") -> None:
        self.status, self.headers = status, {"X_Error_Code": code, "X_Error_Message": message}
        if commit:
            self.headers["X_Repo_Commit"] = commit


class _Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Mirror

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        path = unquote(urlsplit(self.path).path)
        try:
            if found := FILE.fullmatch(path):
                self._file("datasets" if found["dataset"] else "models", found["id"], found["revision"], found["path"])
            elif found := API.fullmatch(path):
                self._api(found["kind"], found["id"], found["what"], found["revision"])
            else:
                self._send(200 if path == "/" else 404, b"")
        except _Refused as refused:
            self._send(refused.status, b"", **refused.headers)

    do_HEAD = do_POST = do_GET

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content_Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _readable(self, kind: str, name: str, revision: str | None, files: bool) -> tuple[Repository, str]:
        """The repository and the commit; whatever is gated, its card and its listing are for all to see."""
        found = self.server.repositories.get(f"{kind}/{name}")
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in (TOKEN, STRANGER):
            raise _Refused(401, message="Invalid credentials in Authorization header")
        if found is None or (found.access == "private" and token != TOKEN):
            raise _Refused(404 if token else 401, "RepoNotFound", "Repository not found")
        if found.access == "gated" and files and token != TOKEN:
            raise _Refused(403 if token else 401, "GatedRepo", f"Access to {name} is restricted")
        if found.access == "forbidden" and files:
            raise _Refused(403, message="The token cannot read this repository")
        commit = found.refs.get(revision or "main", revision or "")
        if commit not in found.commits:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found, commit

    def _file(self, kind: str, name: str, revision: str, path: str) -> None:
        found, commit = self._readable(kind, name, revision, files=path != "README.md")
        if path in found.slow:
            self.server.closing.wait()
        body = found.commits[commit].get(path)
        if body is None:
            raise _Refused(404, "EntryNotFound", "Entry not found", commit)
        named = {"X_Repo_Commit": commit, "ETag": f'"{hashlib.sha1(body).hexdigest()}"', "Accept_Ranges": "bytes"}
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        if start:
            named["Content_Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        sent, length = body[start:], str(len(body) - start)
        at, times = found.cut.get(path, (0, 0))
        if self.command == "GET" and times and start <= at:
            found.cut[path] = at, times - 1
            sent, self.close_connection = body[start:at], True
        self._send(206 if start else 200, sent, Content_Length=length, **named)

    def _api(self, kind: str, name: str, what: str | None, revision: str | None) -> None:
        asked = parse_qs(self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode())
        found, commit = self._readable(kind, name, revision, files=False)
        files = found.commits[commit]
        if what == "paths-info":
            self._json([entry for path in asked.get("paths", []) if (entry := self._entry(files, path))])
        elif what == "tree":
            url = urlsplit(self.path)
            start = unquote(url.path).partition(f"/tree/{revision}")[2].strip("/")
            within = {path for path in files if path.startswith(f"{start}/" if start else "")}
            if start and not within:
                raise _Refused(404, "EntryNotFound", f"{start} does not exist", commit)
            if "recursive=true" not in url.query.lower():
                depth = start.count("/") + 2 if start else 1
                within = {"/".join(path.split("/")[:depth]) for path in within}
            self._json([self._entry(files, path) for path in sorted(within)])
        else:
            siblings = [{"rfilename": path} for path in files]
            self._json({"id": name, "sha": commit, "siblings": siblings, "private": found.access == "private"})

    def _entry(self, files: dict[str, bytes], path: str) -> dict[str, object] | None:
        if path in files:
            oid = hashlib.sha1(files[path]).hexdigest()
            return {"type": "file", "path": path, "size": len(files[path]), "oid": oid}
        if any(other.startswith(f"{path}/") for other in files):
            return {"type": "directory", "path": path, "oid": "0" * 40}
        return None

    def _json(self, content: object) -> None:
        self._send(200, json.dumps(content).encode(), Content_Type="application/json")
