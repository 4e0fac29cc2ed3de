"""A Hugging Face Hub on loopback, for the real client: repositories, commits, branches, pull requests, and failures.

Run `with Hub() as hub:` and give `hub.environment(home)` to a new process: the client reads HF_* when it is imported.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKENS = {  # token -> (account, role)
    "hf_writewritewritewrite": ("alice", "write"),
    "hf_readreadreadreadread": ("alice", "read"),
    "hf_finefinefinefinefine": ("alice", "fineGrained"),
}
WRITE, READ, FINE = TOKENS


class Repository:
    """Files by revision, and what happened."""

    def __init__(self, private: bool):
        self.private = private
        self.revisions: dict[str, dict[str, bytes]] = {"main": {".gitattributes": b""}}
        self.commits: list[str] = []  # revisions, in the order of their commits
        self.pull_requests: list[dict[str, Any]] = []

    def sha(self, revision: str) -> str:
        files = self.revisions[revision]
        return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()

    def find(self, revision: str) -> str | None:
        """A branch, a ref, or the sha of one."""
        return next((name for name in self.revisions if revision in (name, self.sha(name))), None)


class Hub:
    """The server and its state.

    Attributes:
        repositories: By OWNER/NAME.
        requests: "METHOD path" of every request.
        failures: (method, part of the path, status, how often): answered before anything else; status 0 cuts the
            connection after a part of the body was read.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.failures: list[list[Any]] = []
        self.objects: dict[str, bytes] = {}
        self.lfs = False

    def __enter__(self) -> Hub:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def fail(self, method: str, path: str, status: int, times: int = 1000) -> None:
        self.failures.append([method, path, status, times])

    def environment(self, home: Path, token: str | None = WRITE, **more: str) -> dict[str, str]:
        """For a new process, with a cache of its own and no other token."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        env = {**kept, "HF_ENDPOINT": self.address, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1",
               "HF_HUB_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1"}  # fmt: skip
        if token:
            env["HF_TOKEN"] = token
        return {**env, **more}


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: Any = None, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body if body is not None else {}).encode()
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, status: int, code: str = "", message: str = "") -> None:
        self.answer(status, {"error": message}, **({"X_Error_Code": code} if code else {}), X_Error_Message=message)

    def handle_any(self) -> None:
        address = urlsplit(self.path)
        self.route, self.query = unquote(address.path), parse_qs(address.query)
        self.hub.requests.append(f"{self.command} {self.route}")
        size = int(self.headers.get("Content-Length") or 0)
        for failure in self.hub.failures:
            if failure[0] == self.command and failure[1] in self.route and failure[3] > 0:
                failure[3] -= 1
                if failure[2] == 0:
                    self.rfile.read(size // 2)
                    self.close_connection = True
                    return
                self.rfile.read(size)
                more = {"ratelimit": '"api";r=0;t=1'} if failure[2] == 429 else {}
                self.answer(failure[2], {"error": "as the test wants"}, X_Error_Message="as the test wants", **more)
                return
        self.body = self.rfile.read(size)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        self.account, self.role = TOKENS.get(token, (None, None))
        if token and not self.account:
            self.refuse(401, message="Invalid credentials in Authorization header")
            return
        for method, pattern, run in ROUTES:
            if self.command in method and (match := re.fullmatch(pattern, self.route)):
                run(self, *match.groups())
                return
        self.refuse(404, message="no such route")

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def repository(self, name: str, write: bool = False) -> Repository | None:
        found = self.hub.repositories.get(name)
        mine = self.account == name.partition("/")[0]
        if found is None or (found.private and not mine):
            self.refuse(404 if self.account else 401, "RepoNotFound", "Repository not found")
            return None
        if write and not (mine and self.role == "write") and not self.query.get("create_pr"):
            self.refuse(403, message="Forbidden: you must use a write token")
            return None
        return found

    def whoami(self) -> None:
        token: dict[str, Any] = {"role": self.role}
        if self.role == "fineGrained":
            token["fineGrained"] = {"global": [], "scoped": [{"permissions": ["repo.content.read"]}]}
        orgs: list[Any] = []
        if not self.account:
            self.refuse(401, message="Unauthorized")
            return
        self.answer(200, {"type": "user", "name": self.account, "orgs": orgs, "auth": {"accessToken": token}})

    def create(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or self.account}/{asked['name']}"
        url = {"url": f"{self.hub.address}/{name}"}
        if name.partition("/")[0] != self.account or self.role != "write":
            self.refuse(403, message=f"You don't have the rights to create a model under {name.partition('/')[0]}")
        elif name in self.hub.repositories:
            self.answer(409, {**url, "error": "You already created this model repo"})
        else:
            self.hub.repositories[name] = Repository(asked.get("visibility") == "private")
            self.answer(200, url)

    def check_write(self, name: str) -> None:
        if self.repository(name, write=True):
            self.answer(200)

    def info(self, name: str, revision: str | None) -> None:
        found = self.repository(name)
        if not found:
            return
        at = found.find(revision or "main")
        if not at:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        files = [{"rfilename": file} for file in found.revisions[at]]
        self.answer(200, {"id": name, "sha": found.sha(at), "private": found.private, "siblings": files})

    def branch(self, name: str, branch: str) -> None:
        if found := self.repository(name, write=True):
            exists = branch in found.revisions
            found.revisions.setdefault(branch, dict(found.revisions["main"]))
            self.answer(409 if exists else 200, {"error": "Reference already exists"} if exists else {})

    def discussions(self, name: str) -> None:
        if found := self.repository(name):
            self.answer(200, {"discussions": found.pull_requests, "count": len(found.pull_requests), "start": 0})

    def preupload(self, name: str, revision: str) -> None:
        found = self.repository(name, write=not revision.startswith("refs/pr/"))
        if not found:
            return
        at = found.find(revision)
        if not at:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        answers = []
        for file in json.loads(self.body)["files"]:
            lfs = self.hub.lfs and file["path"].endswith(".safetensors")
            answer = {"path": file["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
            if (there := found.revisions[at].get(file["path"])) is not None:
                blob = b"blob %d\0" % len(there) + there
                answer["oid"] = hashlib.sha256(there).hexdigest() if lfs else hashlib.sha1(blob).hexdigest()
            answers.append(answer)
        self.answer(200, {"files": answers})

    def lfs_batch(self, name: str) -> None:
        if self.repository(name):
            objects = [
                {**item, "actions": {"upload": {"href": f"{self.hub.address}/lfs/{item['oid']}?X-Signature=secret"}}}
                for item in json.loads(self.body)["objects"]
            ]
            self.answer(200, {"transfer": "basic", "objects": objects})

    def lfs_put(self, oid: str) -> None:
        self.hub.objects[oid] = self.body
        self.answer(200)

    def commit(self, name: str, revision: str) -> None:
        found = self.repository(name, write=not revision.startswith("refs/pr/"))
        if not found:
            return
        lines = [json.loads(line) for line in self.body.splitlines()]
        files = dict(found.revisions[revision])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
        more = {}
        if self.query.get("create_pr"):
            number = len(found.pull_requests) + 1
            revision = f"refs/pr/{number}"
            more["pullRequestUrl"] = f"{self.hub.address}/{name}/discussions/{number}"
            found.pull_requests.append(
                {"num": number, "title": lines[0]["value"]["summary"], "status": "open", "isPullRequest": True,
                 "author": {"name": self.account}, "createdAt": "2026-11-21T00:00:00.000Z",
                 "repo": {"name": name, "type": "model"}}
            )  # fmt: skip
        found.revisions[revision] = files
        found.commits.append(revision)
        sha = found.sha(revision)
        self.answer(
            200, {"success": True, "commitOid": sha, "commitUrl": f"{self.hub.address}/{name}/commit/{sha}", **more}
        )

    def resolve(self, name: str, revision: str, file: str) -> None:
        found = self.repository(name)
        if not found:
            return
        at = found.find(revision)
        if not at:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif file not in found.revisions[at]:
            self.refuse(404, "EntryNotFound", "Entry not found")
        else:
            data = found.revisions[at][file]
            self.answer(200, data, X_Repo_Commit=found.sha(at), ETag=f'"{hashlib.sha1(data).hexdigest()}"')


NAME = r"([^/]+/[^/]+)"
ROUTES = [
    ("GET", "/api/whoami-v2", Handler.whoami),
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", lambda handler: handler.answer(200, {"errors": [], "warnings": []})),
    ("GET", f"/api/models/{NAME}/auth-check/write", Handler.check_write),
    ("GET", f"/api/models/{NAME}(?:/revision/(.+))?", Handler.info),
    ("POST", f"/api/models/{NAME}/branch/(.+)", Handler.branch),
    ("GET", f"/api/models/{NAME}/discussions", Handler.discussions),
    ("POST", f"/api/models/{NAME}/preupload/(.+)", Handler.preupload),
    ("POST", f"/{NAME}.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT", "/lfs/(.+)", Handler.lfs_put),
    ("POST", f"/api/models/{NAME}/commit/(.+)", Handler.commit),
    ("GET HEAD", f"/{NAME}/resolve/(refs/pr/[0-9]+|[^/]+)/(.+)", Handler.resolve),
]
