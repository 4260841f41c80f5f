"""A server on this machine that speaks the hub's file interface: listings, ranges, commits."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

REPO = "someone/tiny"


class HubServer:
    """One repository, `REPO`, at one commit; `files` is None until it is made.

    `log` holds what was asked; `cut_off[path]` bytes after which the next transfer of a file
    breaks; `replaced[path]` is sent in place of a file, as by a damaged disk; after `uploads` large
    files further ones are refused.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] | None = None
        self.large: dict[str, bytes] = {}
        self.commits: list[str] = []
        self.log: list[tuple[str, str, str | None]] = []
        self.sent: dict[str, int] = {}
        self.cut_off: dict[str, int] = {}
        self.replaced: dict[str, bytes] = {}
        self.private: bool | None = None
        self.uploads: int | None = None
        self.knows_ranges = True
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    @property
    def commit(self) -> str:
        """The name of the commit: it follows from the content."""
        listing = [
            (name, hashlib.sha1(raw).hexdigest()) for name, raw in (self.files or {}).items()
        ]
        return hashlib.sha1(json.dumps(sorted(listing)).encode()).hexdigest()

    def asked_for(self) -> set[str]:
        """Paths whose content was fetched."""
        return set(self.sent)

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"
    # Small answers would wait for the acknowledgement of their header.
    disable_nagle_algorithm = True

    def log_message(self, *_: Any) -> None:
        """Silence."""

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, value: object, code: int = 200, **headers: str) -> None:
        raw = json.dumps(value).encode()
        self.send_response(code)
        for name, content in headers.items():
            self.send_header(name.replace("_", "-"), content)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def _path(self) -> str:
        path = unquote(urlsplit(self.path).path)
        self.hub.log.append((self.command, path, self.headers.get("Range")))
        return path

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self._path()
        api = f"/api/models/{REPO}"
        if self.hub.files is None or REPO not in path:
            self._answer({"error": "none"}, 404, X_Error_Code="RepoNotFound")
        elif path == api or re.fullmatch(rf"{api}/revision/(main|{self.hub.commit})", path):
            self._answer({"id": REPO, "sha": self.hub.commit, "siblings": []})
        elif path.startswith(f"{api}/revision/"):
            self._answer({"error": "none"}, 404, X_Error_Code="RevisionNotFound")
        elif path.startswith(f"{api}/tree/"):
            self._answer([{"type": "file", "path": name, "size": len(raw), "oid": "0" * 40}
                          for name, raw in self.hub.files.items()])  # fmt: skip
        else:
            self._file(path.removeprefix(f"/{REPO}/resolve/").partition("/")[2])

    def _file(self, name: str) -> None:
        assert self.hub.files is not None
        if name not in self.hub.files:
            self._answer({"error": "none"}, 404, X_Error_Code="EntryNotFound")
            return
        raw = self.hub.replaced.get(name, self.hub.files[name])
        start, code = 0, 200
        if (wanted := self.headers.get("Range")) and self.hub.knows_ranges:
            start, code = int(wanted.removeprefix("bytes=").split("-")[0]), 206
        self.send_response(code)
        self.send_header("ETag", f'"{hashlib.sha256(raw).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.hub.commit)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(raw) - start))
        if code == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(raw) - 1}/{len(raw)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        end = self.hub.cut_off.get(name, len(raw))
        self.wfile.write(raw[start:end])
        self.hub.sent[name] = self.hub.sent.get(name, 0) + max(end - start, 0)
        if end < len(raw):
            self.close_connection = True

    def do_PUT(self) -> None:
        oid, body = self._path().rpartition("/")[2], self._body()
        if self.hub.uploads is not None and len(self.hub.large) >= self.hub.uploads:
            self._answer({"error": "gone"}, 403)
            return
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.large[oid] = body
        self._answer({})

    def do_POST(self) -> None:
        path, body = self._path(), self._body()
        if path == "/api/repos/create":
            wanted = json.loads(body)
            # Older clients send the one, newer ones the other.
            self.hub.private = wanted.get("private") or wanted.get("visibility") == "private"
            self.hub.files = {} if self.hub.files is None else self.hub.files
            self._answer({"url": f"{self.hub.url}/{REPO}", "name": REPO})
        elif "/preupload/" in path:
            self._answer({"files": [
                {"path": one["path"], "shouldIgnore": False,
                 "uploadMode": "lfs" if one["path"].endswith("safetensors") else "regular"}
                for one in json.loads(body)["files"]]})  # fmt: skip
        elif path.endswith("/info/lfs/objects/batch"):
            self._answer({"transfer": "basic", "objects": [
                {**one, **({} if one["oid"] in self.hub.large else
                           {"actions": {"upload": {"href": f"{self.hub.url}/put/{one['oid']}"}}})}
                for one in json.loads(body)["objects"]]})  # fmt: skip
        elif "/commit/" in path:
            self._commit(body)
        else:
            self._answer({"errors": [], "warnings": []})

    def _commit(self, body: bytes) -> None:
        assert self.hub.files is not None
        for line in map(json.loads, body.decode().splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.hub.commits.append(value["summary"])
            elif line["key"] == "file":
                self.hub.files[value["path"]] = base64.b64decode(value["content"])
            else:
                self.hub.files[value["path"]] = self.hub.large[value["oid"]]
        url = f"{self.hub.url}/{REPO}/commit/{self.hub.commit}"
        self._answer({"success": True, "commitOid": self.hub.commit, "commitUrl": url,
                      "hookOutput": ""})  # fmt: skip
