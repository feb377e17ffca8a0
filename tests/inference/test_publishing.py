"""apollo-push: against a server that answers as the hub does, and without one."""

import base64
import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from shutil import copytree, ignore_patterns
from threading import Thread
from typing import Any

import pytest

from apollo_cli.push import run

Finished = Callable[[str], Path]
SHA = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """What was asked of the server; `refusal` is a status that it answers a new repository with."""

    def __init__(self) -> None:
        self.made: dict[str, Any] = {}
        self.files: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()
        self.refusal = 0


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    found = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def answer(self, value: Any, code: int = 200) -> None:
            content = json.dumps(value).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def body(self) -> bytes:
            if "Content-Length" in self.headers:
                return self.rfile.read(int(self.headers["Content-Length"]))
            parts = []
            while size := int(self.rfile.readline(), 16):  # in chunks
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def do_POST(self) -> None:
            body = self.body()
            found.tokens.add(self.headers["Authorization"])
            if self.path == "/api/repos/create":
                found.made = json.loads(body)
                if found.refusal:
                    return self.answer({"error": "You have no rights here"}, found.refusal)
                return self.answer({"url": f"{address}/me/{found.made['name']}", "id": f"me/{found.made['name']}"})
            if self.path == "/api/validate-yaml":
                return self.answer({"errors": [], "warnings": []})
            if "/preupload/" in self.path:
                names = [file["path"] for file in json.loads(body)["files"]]
                modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
                return self.answer({"files": modes})
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    found.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return self.answer({"commitUrl": f"{address}/me/m/commit/{SHA}", "commitOid": SHA})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    address = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield found
    server.shutdown()
    server.server_close()


def test_a_model_is_uploaded_with_its_card(
    finished: Finished, tmp_path: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    model = copytree(finished("gpt") / "model", tmp_path / "model")
    (model / "notes.txt").write_text("of its owner alone", encoding="utf-8")
    assert run([str(model), "me/m"]) == 0
    assert capsys.readouterr().out.strip().endswith("/me/m")
    assert hub.made.get("private") is True or hub.made.get("visibility") == "private"
    assert hub.tokens == {"Bearer hf_secret"}
    names = {path.name for path in model.iterdir()} - {"notes.txt"}
    assert set(hub.files) == names
    for name in names - {"README.md"}:
        assert hub.files[name] == (model / name).read_bytes()
    assert 'name = "me/m"\n' in hub.files["README.md"].decode()
    assert run([str(finished("gpt")), "m", "--public"]) == 0
    assert hub.made.get("private") is False or hub.made.get("visibility") == "public"


def test_a_refusal_is_one_line(finished: Finished, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    hub.refusal = 403
    assert run([str(finished("gpt")), "others/m"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("apollo-push: others/m: not uploaded: ")
    assert said.count("\n") == 1
    assert "hf_secret" not in said
    assert not hub.files


def test_an_unfinished_run_is_to_be_finished(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = copytree(finished("gpt"), tmp_path / "a run", ignore=ignore_patterns("model"))
    assert run([str(run_dir), "me/m"]) == 2
    said = capsys.readouterr().err
    assert said.endswith(f"this run has exported no model; resume with: apollo-train 'resume={run_dir}'\n")


def test_a_link_is_not_followed(finished: Finished, tmp_path: Path, hub: Hub) -> None:
    model = copytree(finished("gpt") / "model", tmp_path / "model")
    (tmp_path / "secret").write_text("secret", encoding="utf-8")
    (model / "vocab.txt").symlink_to(tmp_path / "secret")
    assert run([str(model), "me/m"]) == 2
    assert not hub.made


def test_no_token_is_named(
    finished: Finished, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert run([str(finished("gpt")), "me/m"]) == 2
    assert "no token for the hub; type hf auth login, or set HF_TOKEN" in capsys.readouterr().err
    assert not hub.made


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["{run}", "me/m"], "HF_HUB_OFFLINE is set: unset it"),
        (["{run}"], "1 words where two are needed"),
        (["{run}", "me/m", "--pubic"], "--pubic: no such flag"),
        (["{run}", "me/m", "--ema"], "no model_ema in it"),
        (["nowhere", "me/m"], "nowhere: no such folder"),
    ],
)
def test_a_wrong_word_is_named(
    words: list[str], says: str, finished: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([word.format(run=finished("gpt")) for word in words]) == 2
    assert says in capsys.readouterr().err


def test_a_wrong_name_of_a_repository_is_named(
    finished: Finished, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([str(finished("gpt")), "a/b/c"]) == 2
    assert "a/b/c: no name of a repository; type NAME/MODEL" in capsys.readouterr().err
