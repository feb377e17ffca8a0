"""A W&B server on this machine that answers, delays, fails or hangs as a test sets it."""

import json
import socket
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class StubServer(ThreadingHTTPServer):
    """Answers what wandb 0.31 asks, and keeps the rows that it gets.

    Attributes:
        manner: "answer", "hang" (accepts, and never answers), or a status that every request gets.
        delay: seconds before each answer.
        rows: what was uploaded, by `_step`: a row that comes again under its step is the same row.
        lines: how many lines came, repeated ones too.
        complete: whether the end of the run has arrived.
        stopped: whether Stop was pressed on the page of the run.
        artifacts: those that were uploaded, by name; none of their files is asked for.
        runs: the runs that were announced, as the variables of their mutations.
    """

    daemon_threads = True

    def __init__(self, manner: str = "answer", delay: float = 0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.manner, self.delay = manner, delay
        self.rows: dict[int, dict[str, Any]] = {}
        self.lines = 0
        self.stopped, self.artifacts, self.runs = False, dict[str, dict[str, Any]](), list[dict[str, Any]]()
        self.complete, self.paths, self.open_sockets = False, list[str](), set[socket.socket]()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def die(self) -> None:
        """Closes the port and all connections."""
        self.shutdown()
        self.server_close()
        for open_socket in list(self.open_sockets):
            with suppress(OSError):
                open_socket.shutdown(socket.SHUT_RDWR)

    def steps(self) -> list[int]:
        """The `step` of the rows that have arrived, in their order."""
        return [row["step"] for _, row in sorted(self.rows.items())]

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer of the real server, as far as the client reads it."""
        if path.endswith("/file_stream"):
            self._keep(body)
            return {"exitcode": None, "limits": {}}
        query, data = body.get("query", ""), dict[str, Any]()
        project = {"id": "p", "name": "apollo", "entity": {"id": "e", "name": "me"}}
        if "upsertBucket" in query:
            self.runs.append(body["variables"])
            bucket = {"id": "b", "name": "abc", "displayName": "n", "description": "", "config": "{}"}
            data["upsertBucket"] = {
                "bucket": bucket | {"sweepName": None, "historyLineCount": self.lines, "project": project},
                "inserted": not self.rows,
            }
        elif "RunResumeStatus" in query:
            data["model"] = project | {"bucket": self._resume_state() if self.rows else None}
        elif "RunStoppedStatus" in query:
            data["project"] = {"run": {"stopped": self.stopped}}
        elif "createArtifact(" in query:
            name = body["variables"]["input"]["artifactCollectionName"]
            self.artifacts[name] = body["variables"]["input"]
            versions = {"id": "s", "latestArtifact": {"id": "a", "versionIndex": 0}}
            known = {"id": "a", "state": "COMMITTED", "artifactSequence": versions}
            data["createArtifact"] = {"artifact": known}
        elif "createRunFiles" in query:
            data["createRunFiles"] = {"runID": "b", "uploadHeaders": [], "files": []}
        return {"data": data}

    def _keep(self, body: dict[str, Any]) -> None:
        part = (body.get("files") or {}).get("wandb-history.jsonl", {"offset": 0, "content": []})
        self.lines = max(self.lines, part["offset"] + len(part["content"]))
        for row in map(json.loads, part["content"]):
            assert self.rows.get(row["_step"], row)["step"] == row["step"]  # or a row is overwritten
            self.rows[row["_step"]] = row
        self.complete |= bool(body.get("complete"))

    def _resume_state(self) -> dict[str, Any]:
        tail = json.dumps([json.dumps({"_step": len(self.rows) - 1, "_runtime": 1})])
        counts = {"logLineCount": 0, "historyLineCount": self.lines, "eventsLineCount": 0}
        texts = {"summaryMetrics": "{}", "historyTail": tail, "eventsTail": "[]", "config": "{}"}
        return {"id": "b", "name": "abc", "displayName": "n", "tags": [], "wandbConfig": '{"t":1}'} | counts | texts


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StubServer

    def setup(self) -> None:
        super().setup()
        self.server.open_sockets.add(self.connection)

    def finish(self) -> None:
        self.server.open_sockets.discard(self.connection)
        with suppress(OSError):
            super().finish()

    def do_POST(self) -> None:
        text, body = self.rfile.read(int(self.headers.get("Content-Length", 0))), dict[str, Any]()
        server = self.server
        server.paths.append(self.path)
        time.sleep(server.delay if server.manner != "hang" else 3600)
        if server.manner == "answer":
            with suppress(ValueError):  # W&B's own telemetry is none of JSON
                body = json.loads(text or "{}")
            self._reply(200, server.answer(self.path, body))
        else:
            self._reply(int(server.manner), {"errors": [{"message": "user is not logged in"}]})

    do_GET = do_PUT = do_POST  # noqa: N815

    def _reply(self, status: int, what: dict[str, Any]) -> None:
        text = json.dumps(what).encode()
        with suppress(OSError):
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def unused_port() -> int:
    """A port that refuses connections."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
