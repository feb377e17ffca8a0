"""A server that answers as the Hugging Face hub does about datasets whose files are given."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

SHA = "0123456789abcdef0123456789abcdef01234567"  # of every commit there is


@contextmanager
def stub_hub(datasets: Mapping[str, Mapping[str, bytes]]) -> Iterator[str]:
    """Serves the files of datasets, by name and path; returns the address for HF_ENDPOINT."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def answer(self, code: int, content: bytes = b"", **headers: str) -> None:
            self.send_response(code)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def answer_json(self, value: Any) -> None:
            self.answer(200, json.dumps(value).encode(), Content_Type="application/json")

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            found = re.fullmatch(r"(/api)?/datasets/([^/]+/[^/]+)(?:/(\w[\w-]*)(?:/(.*))?)?", path)
            if not found or found[2] not in datasets:
                return self.answer(404, X_Error_Code="RepoNotFound")
            api, name, verb, rest = found.groups()
            files, (revision, _, inside) = datasets[name], (rest or "").partition("/")
            if not api and verb == "resolve":
                return self.send_file(files, inside)
            if rest and revision not in (SHA, "main"):
                return self.answer(404, X_Error_Code="RevisionNotFound")
            if verb in (None, "revision"):
                return self.answer_json({"id": name, "sha": SHA, "siblings": [{"rfilename": f} for f in files]})
            if verb == "tree":
                below = inside and f"{inside}/"
                children = {below + f.removeprefix(below).partition("/")[0] for f in files if f.startswith(below)}
                return self.answer_json([self.entry(child, files) for child in sorted(children)])
            return self.answer(404)

        do_HEAD = do_GET  # noqa: N815 - the name of http.server

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            found = re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/paths-info/.*", unquote(urlsplit(self.path).path))
            if not found:
                return self.answer(404)
            paths = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
            files = datasets[found[1]]
            known = [path for path in paths if any(f == path or f.startswith(f"{path}/") for f in files)]
            return self.answer_json([self.entry(path, files) for path in known])

        def entry(self, path: str, files: Mapping[str, bytes]) -> dict[str, Any]:
            kind = "file" if path in files else "directory"
            return {"type": kind, "path": path, "size": len(files.get(path, b"")), "oid": SHA}

        def send_file(self, files: Mapping[str, bytes], path: str) -> None:
            if path not in files:
                return self.answer(404, X_Error_Code="EntryNotFound")
            content, headers = files[path], {"X_Repo_Commit": SHA, "ETag": f'"{SHA}"', "Accept_Ranges": "bytes"}
            if span := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                first, last = int(span[1]), int(span[2] or len(content) - 1)
                headers["Content_Range"] = f"bytes {first}-{last}/{len(content)}"
                return self.answer(206, content[first : last + 1], **headers)
            return self.answer(200, content, **headers)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
