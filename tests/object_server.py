"""An object store on this machine: files of a folder by http, and by Cloud Storage's JSON API.

Tests get it as the fixture `object_server`. It can be told to answer with errors for a while.
"""

import http.server
import json
import threading
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

BUCKET = "test-bucket"
OBJECTS = f"/storage/v1/b/{BUCKET}/o"
UPLOADS = f"/upload{OBJECTS}"


class ObjectServer:
    """Serves the files below a folder until it is closed.

    Attributes:
      root: the folder.
      url: of the folder by http.
      failed: how many requests were answered with an error since `fail` was called last.
    """

    bucket = f"gs://{BUCKET}"

    def __init__(self, root):
        self.root, self.failed = Path(root), 0
        self._status, self._times, self._of = 503, 0, ""
        self._lock = threading.Lock()
        self._generations = {}
        handler = type("Handler", (_Handler,), {"store": self})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def environment(self):
        """What lets TensorStore take it for Cloud Storage."""
        return {"TENSORSTORE_GCS_HTTP_URL": self.url, "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none"}

    def fail(self, status, times, of=""):
        """Answers the next requests whose URL has `of` in it with an error."""
        with self._lock:
            self._status, self._times, self._of, self.failed = status, times, of, 0

    def take_failure(self, path):
        """The error to answer a request with, or None."""
        with self._lock:
            if not self._times or self._of not in unquote(path):
                return None
            self._times -= 1
            self.failed += 1
            return self._status

    def generation(self, name):
        """Number of the version of a file, 0 where there is none."""
        exists = (self.root / name).is_file()
        return self._generations.get(name, 1) if exists else 0

    def write(self, name, content, wanted):
        """Writes a file if its generation is the wanted one; returns whether it was."""
        with self._lock:
            if wanted is not None and int(wanted) != self.generation(name):
                return False
            self._generations[name] = self._generations.get(name, 1) + 1
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f"{path.name}.partial")
            partial.write_bytes(content)
            partial.replace(path)
            return True

    def close(self):
        self._server.shutdown()
        self._server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    store: ObjectServer

    def do_GET(self):
        url = urlsplit(self.path)
        if (status := self.store.take_failure(self.path)) is not None:
            return self.answer(status, b"")
        if url.path == OBJECTS:
            return self.list(parse_qs(url.query))
        name = unquote(url.path.removeprefix(OBJECTS)).strip("/")
        path = self.store.root / name
        if not path.is_file():
            return self.answer(404, b"")
        body = path.read_bytes()
        generation = self.store.generation(name)
        if parse_qs(url.query).get("ifGenerationNotMatch") == [str(generation)]:
            return self.answer(304, b"")
        if url.path.startswith(OBJECTS) and "alt=media" not in url.query:
            return self.describe(name)
        headers = {"x-goog-generation": str(generation)}
        if (wanted := self.headers.get("Range")) is None:
            return self.answer(200, body, headers)
        first, last = wanted.removeprefix("bytes=").split("-")
        part = body[int(first) : int(last) + 1 if last else None]
        if not part:
            return self.answer(416, b"")
        span = f"bytes {first}-{int(first) + len(part) - 1}/{len(body)}"
        return self.answer(206, part, headers | {"Content-Range": span})

    def do_POST(self):
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if (status := self.store.take_failure(self.path)) is not None:
            return self.answer(status, b"")
        query = parse_qs(urlsplit(self.path).query)
        name = query["name"][0]
        if not self.store.write(name, content, query.get("ifGenerationMatch", [None])[0]):
            return self.answer(412, b"")
        return self.describe(name)

    def do_DELETE(self):
        if (status := self.store.take_failure(self.path)) is not None:
            return self.answer(status, b"")
        name = unquote(urlsplit(self.path).path.removeprefix(OBJECTS)).strip("/")
        (self.store.root / name).unlink(missing_ok=True)
        return self.answer(204, b"")

    def list(self, query):
        wanted = query.get("prefix", [""])[0]
        root = self.store.root
        files = (str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
        names = sorted(name for name in files if name.startswith(wanted))
        self.answer(200, json.dumps({"items": [{"name": name} for name in names]}).encode())

    def describe(self, name):
        size = (self.store.root / name).stat().st_size
        facts = {"name": name, "size": str(size), "generation": str(self.store.generation(name))}
        self.answer(200, json.dumps(facts).encode())

    def answer(self, status, body, headers=None):
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass
