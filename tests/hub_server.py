"""A Hub on this machine, with as much of its API as huggingface_hub asks for."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_tests"


@dataclass
class Repository:
    """Commits of a repository, the oldest first: a hash, and the files by path."""

    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False
    messages: list[str] = field(default_factory=list)

    def commit(self, files: Mapping[str, bytes], message: str = "") -> str:
        """Add or replace files; the hash of the commit."""
        whole = {**(self.commits[-1][1] if self.commits else {}), **files}
        text = repr((len(self.commits), sorted(whole.items())))
        sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        self.commits.append((sha, whole))
        self.messages.append(message)
        return sha

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit that a revision means."""
        if revision == "main":
            return self.commits[-1]
        wanted = self.tags.get(revision, revision)
        return next((one for one in self.commits if one[0] == wanted), None)


class Hub:
    """A server with repositories; ``requests`` lists what was asked of it."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.broken = False

        class Handler(_Handler):
            hub = self

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def repository(self, name: str, files: Mapping[str, bytes]) -> Repository:
        """A new repository with one commit."""
        made = self.repositories[name] = Repository()
        made.commit(files)
        return made

    def close(self) -> None:
        """Stop answering."""
        if self.thread.is_alive():
            self.server.shutdown()
            self.thread.join()
            self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, code: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, value: Any) -> None:
        self.answer(200, json.dumps(value).encode(), Content_Type="application/json")

    def read(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def asked(self) -> list[str] | None:
        """The parts of the path; None where the server is broken, and has said so."""
        path = urlsplit(self.path).path
        self.hub.requests.append(f"{self.command} {path}")
        if self.hub.broken:
            self.answer(503)
            return None
        return [unquote(part) for part in path.strip("/").split("/")]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        match self.asked():
            case None:
                pass
            case ["api", "models", owner, name, *rest]:
                self.described(f"{owner}/{name}", rest)
            case [owner, name, "resolve", revision, *parts]:
                self.file(f"{owner}/{name}", revision, "/".join(parts))
            case _:
                self.answer(404)

    def found(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        repository = self.hub.repositories.get(name)
        if repository is None:
            self.answer(404, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
            return None
        commit = repository.at(revision)
        if commit is None:
            self.answer(404, X_Error_Code="RevisionNotFound", X_Error_Message="Invalid rev id")
        return commit

    def described(self, name: str, rest: list[str]) -> None:
        kind, revision = rest if len(rest) == 2 else ("revision", "main")
        commit = self.found(name, revision)
        if commit is None:
            return
        sha, files = commit
        if kind == "tree":
            rows = [
                {"type": "file", "path": path, "size": len(data), "oid": _oid(data)}
                for path, data in files.items()
            ]
            self.json(rows)
        else:
            self.json({"id": name, "sha": sha, "siblings": [{"rfilename": f} for f in files]})

    def file(self, name: str, revision: str, path: str) -> None:
        commit = self.found(name, revision)
        if commit is None:
            return
        sha, files = commit
        if self.hub.repositories[name].gated:
            self.answer(403, X_Error_Code="GatedRepo", X_Repo_Commit=sha)
        elif path not in files:
            self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
        else:
            self.answer(200, files[path], ETag=f'"{_oid(files[path])}"', X_Repo_Commit=sha)

    def do_PUT(self) -> None:
        match self.asked():
            case ["objects", oid]:
                data = self.read()
                assert hashlib.sha256(data).hexdigest() == oid
                self.hub.objects[oid] = data
                self.answer(200)
            case _:
                self.answer(404)

    def do_POST(self) -> None:
        asked, body = self.asked(), self.read()
        if asked is None:
            return
        if asked == ["api", "validate-yaml"]:
            self.json({"errors": [], "warnings": []})
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer(403, X_Error_Message="You don't have the rights to create a model")
        else:
            self.written(asked, body)

    def written(self, asked: list[str], body: bytes) -> None:
        match asked:
            case ["api", "repos", "create"]:
                wanted = json.loads(body)
                name = f"{wanted['organization']}/{wanted['name']}"
                if name in self.hub.repositories:
                    self.answer(409, json.dumps({"url": f"{self.hub.url}/{name}"}).encode())
                    return
                private = wanted.get("visibility") == "private" or wanted.get("private") is True
                self.hub.repositories[name] = Repository(private=private)
                self.json({"url": f"{self.hub.url}/{name}"})
            case ["api", "models", _, _, "preupload", "main"]:
                paths = [one["path"] for one in json.loads(body)["files"]]
                modes = {p: "lfs" if p.endswith(".safetensors") else "regular" for p in paths}
                files = [{"path": p, "uploadMode": modes[p], "shouldIgnore": False} for p in paths]
                self.json({"files": files})
            case [_, _, "info", "lfs", "objects", "batch"]:
                objects = [
                    {
                        **one,
                        "actions": {"upload": {"href": f"{self.hub.url}/objects/{one['oid']}"}},
                    }
                    for one in json.loads(body)["objects"]
                ]
                self.json({"transfer": "basic", "objects": objects})
            case ["api", "models", owner, name, "commit", "main"]:
                self.committed(f"{owner}/{name}", [json.loads(line) for line in body.splitlines()])
            case _:
                self.answer(404)

    def committed(self, name: str, lines: list[dict[str, Any]]) -> None:
        files, message = {}, ""
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                files[value["path"]] = self.hub.objects[value["oid"]]
        sha = self.hub.repositories[name].commit(files, message)
        self.json({"commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "commitOid": sha})


def _oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
