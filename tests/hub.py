"""A stand-in of the Hugging Face Hub on this machine: the part of its HTTP interface that models need."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

TOKEN = "hf_good"


class Repo:
    """A repository: for each branch its newest commit, for each commit its files."""

    def __init__(self, private: bool) -> None:
        self.private, self.commits, self.branches = private, {"0" * 40: dict[str, bytes]()}, {"main": "0" * 40}
        self.messages: list[str] = []

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit that a branch or a commit's name means, and its files."""
        commit = self.branches.get(revision, revision)
        return (commit, self.commits[commit]) if commit in self.commits else None

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        """Add files to a branch; returns the new commit."""
        name = hashlib.sha1(f"{len(self.commits)}".encode()).hexdigest()
        self.commits[name] = self.commits[self.branches[branch]] | files
        self.branches[branch] = name
        self.messages.append(message)
        return name


class Answer(NamedTuple):
    status: int
    body: Any = {}  # noqa: RUF012 - never changed
    headers: dict[str, str] = {}  # noqa: RUF012


class Hub:
    """What the server holds; `fail` is a part of a path whose requests are cut off, `asked` every request."""

    def __init__(self) -> None:
        self.repos, self.blobs, self.asked = dict[str, Repo](), dict[str, bytes](), list[str]()
        self.fail, self.url = "", ""

    def answer(self, verb: str, path: str, body: bytes, token: str) -> Answer:
        known = token == f"Bearer {TOKEN}"
        if verb == "POST" and not known and not path.startswith("/api/validate-yaml"):  # PUT has a signed address
            return Answer(401, {"error": "Invalid username or password."}, {"X-Error-Message": "Invalid credentials"})
        if path.startswith("/api/validate-yaml"):
            return Answer(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization')}/{asked['name']}"
            if name in self.repos:
                return Answer(409, {"error": "You already created this model repo", "url": f"{self.url}/{name}"})
            self.repos[name] = Repo(bool(asked.get("private")) or asked.get("visibility") == "private")
            return Answer(200, {"url": f"{self.url}/{name}"})
        if found := re.fullmatch(r"/lfs/(\w+)", path):
            self.blobs[found[1]] = body
            return Answer(200)
        found = re.fullmatch(r"(?:/api/models)?/([\w.-]+/[\w-]+)(?:\.git)?(?:/(\w+)(?:/(.*))?)?", path)
        repo = self.repos.get(found[1]) if found else None
        if found is None or repo is None or (repo.private and not known):
            return Answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        return self.in_repo(repo, found[1], found[2] or "", unquote(found[3] or ""), body)

    def in_repo(self, repo: Repo, name: str, what: str, rest: str, body: bytes) -> Answer:
        if what == "branch":
            there = rest in repo.branches
            repo.branches.setdefault(rest, repo.branches["main"])
            return Answer(409 if there else 200, {"error": "Reference already exists"} if there else {})
        if what == "preupload":
            mode = {True: "lfs", False: "regular"}
            files = [file["path"] for file in json.loads(body)["files"]]
            told = [{"path": f, "uploadMode": mode[f.endswith(".safetensors")], "shouldIgnore": False} for f in files]
            return Answer(200, {"files": told})
        if what == "info" and rest == "lfs/objects/batch":
            objects = json.loads(body)["objects"]
            for one in objects:
                if one["oid"] not in self.blobs:
                    one["actions"] = {"upload": {"href": f"{self.url}/lfs/{one['oid']}"}}
            return Answer(200, {"transfer": "basic", "objects": objects})
        if what == "commit":
            return self.committed(repo, name, rest, [json.loads(line) for line in body.splitlines()])
        revision, _, file = rest.partition("/")
        if (at := repo.at(revision or "main")) is None:
            return Answer(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        commit, files = at
        if what == "resolve":
            if file not in files:
                return Answer(404, {}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            etag = hashlib.sha256(files[file]).hexdigest()
            return Answer(200, files[file], {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"})
        if what == "tree":
            listed = [
                {"type": "file", "path": f, "size": len(d), "oid": hashlib.sha1(d).hexdigest()}
                for f, d in files.items()
            ]
            return Answer(200, listed)
        siblings = [{"rfilename": file} for file in files]
        return Answer(200, {"id": name, "sha": commit, "private": repo.private, "siblings": siblings, "tags": []})

    def committed(self, repo: Repo, name: str, branch: str, lines: list[dict[str, Any]]) -> Answer:
        files, message = {}, ""
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                files[value["path"]] = self.blobs[value["oid"]]
        if branch not in repo.branches:
            return Answer(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        oid = repo.commit(branch, files, message)
        return Answer(200, {"success": True, "commitOid": oid, "commitUrl": f"{self.url}/{name}/commit/{oid}"})


@contextmanager
def hub_on_loopback() -> Iterator[Hub]:
    """A hub that answers at its `url` within."""
    hub = Hub()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = urlsplit(self.path).path
            hub.asked.append(f"{self.command} {path}")
            if hub.fail and hub.fail in path:
                self.close_connection = True  # without an answer
                return
            status, content, headers = hub.answer(self.command, path, body, self.headers.get("Authorization", ""))
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_HEAD = do_POST = do_PUT = answer

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
