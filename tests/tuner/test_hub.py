"""Sharing through huggingface_hub's own client, against a local stand-in for the Hub's HTTP interface."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest

_COMMIT = "c" * 40


class _Hub(BaseHTTPRequestHandler):
    """One repository: creation, preupload, commit, listing and download, as far as the client asks for them."""

    files: dict[str, bytes]
    large: dict[str, bytes]
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def _send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), Content_Type="application/json")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self) -> None:
        path, body = urlparse(self.path).path, self._body()
        if path == "/api/repos/create":
            self._json({"url": f"http://{self.headers['Host']}/me/adapter", "name": "me/adapter", "id": "me/adapter"})
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            names = [file["path"] for file in json.loads(body)["files"]]
            self._json({"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]})
        elif "/commit/" in path:
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            url = f"http://{self.headers['Host']}/me/adapter/commit/{_COMMIT}"
            self._json({"success": True, "commitOid": _COMMIT, "commitUrl": url, "hookOutput": ""})
        else:
            self._json({"error": path}, 404)

    def do_GET(self) -> None:
        path = urlparse(self.path).path
        if match := re.fullmatch(r"/me/adapter/resolve/[^/]+/(.+)", path):
            self._file(match[1])
        elif path.startswith("/api/models/me/adapter"):
            siblings = [{"rfilename": name} for name in self.files]
            self._json({"id": "me/adapter", "modelId": "me/adapter", "sha": _COMMIT, "siblings": siblings, "tags": []})
        else:
            self._json({"error": path}, 404)

    do_HEAD = do_GET

    def _file(self, name: str) -> None:
        if name not in self.files:
            self._send(404, X_Error_Code="EntryNotFound")
            return
        content = self.files[name]
        tag = hashlib.sha1(content).hexdigest()
        self._send(200, content, ETag=f'"{tag}"', X_Repo_Commit=_COMMIT, Content_Type="application/octet-stream")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    handler = type("Handler", (_Hub,), {"files": {}})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", handler.files  # type: ignore[attr-defined]
        server.shutdown()
        thread.join()


_PUSH_AND_PULL = """
import sys
sys.path.insert(0, {root!r})
from huggingface_hub import HfApi
from peft import PeftModel
from peft_landermt import LanderConfig
from tests.conftest import build_model
from tests.tuner.helpers import adapt, ids, logits

model = adapt(build_model("llama"), language_pairs=["en-de"], general_rank=4)
model.push_to_hub("me/adapter", token="hf_none")
loaded = PeftModel.from_pretrained(build_model("llama"), "me/adapter").eval()
assert logits(loaded, ids()).equal(logits(model, ids()))
loaded.load_adapter("me/adapter", "second", revision="main")
assert LanderConfig.from_pretrained("me/adapter").language_pairs == ["en-de"]
model.save_pretrained({folder!r})
HfApi(token="hf_none").upload_folder(repo_id="me/adapter", folder_path={folder!r})
print("same")
"""


@pytest.mark.slow
def test_push_to_hub_and_load_from_it(hub: tuple[str, dict[str, bytes]], tmp_path: Path) -> None:
    """In a process of its own, because the client reads the address of the Hub when it is imported.

    `push_to_hub` of transformers 5 puts its empty card over the one that `save_pretrained` wrote; uploading the
    folder keeps it.
    """
    endpoint, files = hub
    script = _PUSH_AND_PULL.format(root=str(Path(__file__).parents[2]), folder=str(tmp_path / "adapter"))
    environment = {
        **{name: value for name, value in os.environ.items() if "proxy" not in name.lower()},
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0 and done.stdout.strip().endswith("same"), done.stderr[-3000:]
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= set(files)
    card = files["README.md"].decode()
    assert "import peft_landermt" in card and "- de\n- en" in card
