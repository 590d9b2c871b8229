"""A small Hub on loopback: what huggingface_hub asks for when it makes, fills and reads model repositories."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml


TOKEN = "hf_loopback"
LARGE = (".safetensors", ".pt", ".pth", ".bin")


class Hub(ThreadingHTTPServer):
    """
    Repositories in memory. `commits[repo]` is a list of (sha, {path: content}), the newest last; `large` holds
    uploaded large files by their SHA-256; `requests` is a list of "METHOD path".
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.commits, self.large, self.requests = {}, {}, []

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        return self.commit(repo, revision)[1]

    def commit(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]]:
        commits = self.commits[repo]
        return commits[-1] if revision == "main" else next(entry for entry in commits if entry[0] == revision)

    def add(self, repo: str, files: dict[str, bytes]) -> str:
        history = self.commits.setdefault(repo, [])
        sha = hashlib.sha1(f"{repo} {len(history)}".encode()).hexdigest()
        history.append((sha, files))
        return sha


@contextmanager
def hub():
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Error(Exception):
    def __init__(self, status: int, code: str):
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args):
        pass

    def _answer(self):
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            for method, pattern, function in ROUTES:
                match = re.fullmatch(pattern, path)
                if match and self.command in method:
                    if self.command in ("POST", "PUT") and not path.startswith(("/lfs/", "/api/validate")):
                        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                            raise _Error(401, "Unauthorized")
                    return function(self, body, *match.groups())
            raise _Error(404, "RepoNotFound")
        except _Error as error:
            self._send(error.status, json.dumps({"error": error.code}).encode(), {"X-Error-Code": error.code})

    do_GET = do_HEAD = do_POST = do_PUT = _answer

    def _send(self, status: int, content: bytes, headers: dict | None = None):
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, content, status: int = 200):
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _revision(self, repo: str, revision: str | None) -> tuple[str, dict[str, bytes]]:
        if repo not in self.server.commits:
            raise _Error(404, "RepoNotFound")
        try:
            return self.server.commit(repo, revision or "main")
        except StopIteration:
            raise _Error(404, "RevisionNotFound") from None

    def whoami(self, body):
        self._json({"type": "user", "name": "user", "auth": {}})

    def create(self, body):
        request = json.loads(body)
        repo = f"{request.get('organization') or 'user'}/{request['name']}"
        exists = repo in self.server.commits
        if not exists:
            self.server.add(repo, {})
        self._json({"url": f"{self.server.url}/{repo}"}, 409 if exists else 200)

    def validate(self, body):
        content = json.loads(body)["content"]
        match = re.match(r"---\n(.*?)\n---", content, re.DOTALL)
        try:
            good = match is not None and isinstance(yaml.safe_load(match.group(1)), dict)
        except yaml.YAMLError:
            good = False
        errors = [] if good else [{"message": "not a metadata block"}]
        self._json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def preupload(self, body, repo, revision):
        self._revision(repo, None)
        self._json(
            {
                "files": [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                        "shouldIgnore": False,
                        "oid": None,
                    }
                    for file in json.loads(body)["files"]
                ]
            }
        )

    def batch(self, body, repo):
        objects = []
        for entry in json.loads(body)["objects"]:
            if entry["oid"] not in self.server.large:
                entry["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{entry['oid']}"}}
            objects.append(entry)
        self._json({"transfer": "basic", "objects": objects})

    def upload(self, body, oid):
        if hashlib.sha256(body).hexdigest() != oid:
            raise _Error(400, "BadDigest")
        self.server.large[oid] = body
        self._send(200, b"")

    def commit(self, body, repo, revision):
        files = dict(self._revision(repo, None)[1])
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
            elif entry["key"] != "header":
                raise _Error(400, "UnknownOperation")
        sha = self.server.add(repo, files)
        self._json({"commitUrl": f"{self.server.url}/{repo}/commit/{sha}", "commitOid": sha})

    def info(self, body, repo, revision):
        sha, files = self._revision(repo, revision)
        self._json({"id": repo, "sha": sha, "private": False, "siblings": [{"rfilename": name} for name in files]})

    def tree(self, body, repo, revision, folder):
        entries = []
        for name, content in self._revision(repo, revision)[1].items():
            if folder and not name.startswith(f"{folder}/"):
                continue
            entry = {"type": "file", "path": name, "size": len(content), "oid": _blob(content)}
            if name.endswith(LARGE):
                oid = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 130}
            entries.append(entry)
        if folder and not entries:
            raise _Error(404, "EntryNotFound")
        self._json(entries)

    def resolve(self, body, repo, revision, name):
        sha, files = self._revision(repo, revision)
        if name not in files:
            # The client stores that a file is missing under the commit.
            content = json.dumps({"error": "EntryNotFound"}).encode()
            return self._send(404, content, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
        content, headers = files[name], {"X-Repo-Commit": sha}
        if not name.endswith(LARGE):
            return self._content(content, {**headers, "ETag": f'"{_blob(content)}"'})
        oid = hashlib.sha256(content).hexdigest()
        headers |= {"X-Linked-ETag": f'"{oid}"', "X-Linked-Size": len(content)}
        # Large files come from another host, where the client does not follow for their metadata.
        return self._send(302, b"", {**headers, "Location": f"http://localhost:{self.server.server_port}/lfs/{oid}"})

    def large(self, body, oid):
        self._content(self.server.large[oid], {"ETag": f'"{oid}"'})

    def _content(self, content: bytes, headers: dict):
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted is None:
            return self._send(200, content, headers)
        first = int(wanted.group(1))
        last = min(int(wanted.group(2) or len(content) - 1), len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        return self._send(206, content[first : last + 1], headers)


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


REPO = r"([\w.-]+/[\w.-]+?)"
ROUTES = (
    (("GET",), r"/api/whoami-v2", _Handler.whoami),
    (("POST",), r"/api/repos/create", _Handler.create),
    (("POST",), r"/api/validate-yaml", _Handler.validate),
    (("POST",), rf"/api/models/{REPO}/preupload/(.+)", _Handler.preupload),
    (("POST",), rf"/api/models/{REPO}/commit/(.+)", _Handler.commit),
    (("GET",), rf"/api/models/{REPO}/tree/([^/]+)(?:/(.+))?", _Handler.tree),
    (("GET",), rf"/api/models/{REPO}(?:/revision/(.+))?", _Handler.info),
    (("POST",), rf"/{REPO}\.git/info/lfs/objects/batch", _Handler.batch),
    (("PUT",), r"/lfs/(\w+)", _Handler.upload),
    (("GET", "HEAD"), r"/lfs/(\w+)", _Handler.large),
    (("GET", "HEAD"), rf"/{REPO}/resolve/([^/]+)/(.+)", _Handler.resolve),
)
