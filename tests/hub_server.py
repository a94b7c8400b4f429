"""A hub on this machine: of the HTTP interface, what downloads and uploads need."""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading

_COMMIT = "0" * 40


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, code=200, content=b"", **headers):
        self.send_response(code)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def answer_json(self, content, code=200, **headers):
        self.answer(code, json.dumps(content).encode(), **headers)

    def missing(self, kind):
        self.answer_json({"error": kind}, 404, X_Error_Code=kind)

    def do_GET(self):
        self.server.asked.append(self.path)
        if self.path == "/":
            self.answer()
        elif match := re.fullmatch(r"/api/models/(\w+/[\w.-]+)", self.path):
            if match[1] not in self.server.repositories:
                return self.missing("RepoNotFound")
            names = self.server.repositories[match[1]]
            files = [{"rfilename": name} for name in names]
            self.answer_json({"id": match[1], "siblings": files})
        elif match := re.fullmatch(r"/(\w+/[\w.-]+)/resolve/\w+/(.+)", self.path):
            content = self.server.repositories.get(match[1], {}).get(match[2])
            if content is None:
                return self.missing("EntryNotFound")
            etag = f'"{hashlib.sha1(content).hexdigest()}"'
            self.answer(content=content, ETag=etag, X_Repo_Commit=_COMMIT)
        else:
            self.missing("EntryNotFound")
        return None

    do_HEAD = do_GET  # noqa: N815 - as the standard library calls it

    def do_POST(self):
        self.server.asked.append(self.path)
        self.path = self.path.partition("?")[0]
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if not self.headers["Authorization"]:
            return self.answer_json({"error": "Invalid username or password."}, 401)
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization', 'me')}/{asked['name']}"
            self.server.repositories.setdefault(name, {})
            self.server.created = asked
            self.answer_json({"url": f"{self.server.address}/{name}"})
        elif self.path == "/api/validate-yaml":
            self.answer_json({"errors": [], "warnings": []})
        elif match := re.fullmatch(r"/api/models/(.+)/preupload/main", self.path):
            files = json.loads(body)["files"]
            regular = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            self.answer_json({"files": [{"path": f["path"], **regular} for f in files]})
        elif match := re.fullmatch(r"/api/models/(.+)/commit/main", self.path):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    repository = self.server.repositories[match[1]]
                    repository[line["value"]["path"]] = content
            url = f"{self.server.address}/{match[1]}/commit/{_COMMIT}"
            self.answer_json({"commitUrl": url, "commitOid": _COMMIT})
        else:
            self.missing("EntryNotFound")
        return None


@contextlib.contextmanager
def serving():
    """Yields a server with `address`, and `repositories`: files by name, by name."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.address = f"http://127.0.0.1:{server.server_port}"
        server.repositories, server.asked, server.created = {}, [], None
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
