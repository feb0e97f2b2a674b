"""Claims about model cards and ``rpo export --push-to-hub``, against a hub on the loopback."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jax
import pytest
from huggingface_hub import ModelCard, constants
from safetensors.numpy import load

from llm.config import ObjectiveConfig
from llm.config.preference_losses import PREFERENCE_LOSSES
from llm.hf import upload
from llm.train.model_card import (
    CARD_NAME,
    is_generated_card,
    objective_definition,
    write_model_card,
)
from rpo.cli import main

CONFIG = """
name: tiny
model:
  architecture: {vocab_size: 261, hidden_size: 8, intermediate_size: 8, num_hidden_layers: 1,
                 num_attention_heads: 2}
  lora_r: 2
data: {train: rows.jsonl, eval_rows: 2, tokenizer: bytes, max_length: 64}
objective: {method: rpo, beta: 0.1, eta: 1.0}
optimizer: {learning_rate: 0.01}
trainer: {max_steps: 2, eval_steps: 1, save_steps: 1, per_device_train_batch_size: 2}
"""
ROWS = [{"prompt": f"say {i}", "chosen": "yes", "rejected": "no"} for i in range(6)]
NAME = "my-lab/policy"


class Hub:
    """A hub with one token and one organization; it records what it is asked."""

    def __init__(self) -> None:
        self.role, self.accepts, self.is_private = "write", True, None
        self.url = ""
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.branches: list[str] = []

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        self.requests.append(f"{method} {path}")
        match method, path.partition("?")[0].split("/")[1:]:
            case "GET", ["api", "whoami-v2"]:
                token = {"accessToken": {"role": self.role}}
                return (200 if self.accepts else 401), {"name": "me", "auth": token}
            case "POST", ["api", "repos", "create"]:
                fields = json.loads(body)
                if fields.get("organization") != "my-lab":
                    return 403, {"error": "no rights"}
                if self.is_private is not None:
                    return 409, {"error": "exists", "url": f"{self.url}/{NAME}"}
                self.is_private = (
                    bool(fields.get("private")) or fields.get("visibility") == "private"
                )
                return 200, {"url": f"{self.url}/{NAME}"}
            case "GET", ["api", "models", "my-lab", "policy", *_]:
                siblings = [{"rfilename": name} for name in self.files]
                repository = {"id": NAME, "private": self.is_private, "sha": "0" * 40}
                return 200, repository | {"siblings": siblings}
            case "POST", ["api", "models", "my-lab", "policy", "branch", branch]:
                self.branches.append(branch)
                return 200, {}
            case "POST", ["api", "models", "my-lab", "policy", "preupload", _]:
                asked = json.loads(body)["files"]
                files = [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for file in asked
                ]
                return 200, {"files": files}
            case "POST", ["api", "models", "my-lab", "policy", "commit", _]:
                for line in body.splitlines():
                    item = json.loads(line)
                    if item["key"] == "file":
                        value = item["value"]
                        self.files[value["path"]] = base64.b64decode(value["content"])
                url = f"{self.url}/{NAME}/commit/{'1' * 40}"
                return 200, {"commitUrl": url, "commitOid": "1" * 40, "success": True}
            case "POST", ["api", "validate-yaml"]:
                return 200, {"errors": [], "warnings": []}
            case (("HEAD" | "GET"), ["my-lab", "policy", "resolve", _, name]) if name in self.files:
                return 200, self.files[name]
        return 404, {"error": "missing"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def respond(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, content = state.answer(self.command, self.path, body)
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            if status == 404:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("ETag", f'"{hash(data):x}"')
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_POST = do_HEAD = respond  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            """Write nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", state.url)
    template = state.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train adapters for two steps."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "tiny.yaml").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("strict"):
        patch.chdir(folder)
        assert main(["train", "tiny.yaml", "--out", "run"]) == 0
    return folder


def refusal(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert main(["export", "run", "--out", "refused", *options]) == 2
    assert not Path("refused").exists()
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    return captured.err


def test_roundtrip_an_export_is_uploaded_with_its_card(
    run: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(run)
    push = ["--push-to-hub", NAME, "--private", "--revision", "second"]
    out = tmp_path / "adapter"
    assert main(["export", "run", "--adapter", "--out", str(out), *push]) == 0
    assert f"uploaded to {hub.url}/{NAME}/commit/1111" in capsys.readouterr().out
    assert hub.is_private
    assert hub.branches == ["second"]
    commit = next(index for index, each in enumerate(hub.requests) if "/commit/second" in each)
    assert hub.requests[commit].startswith(f"POST /api/models/{NAME}")
    written = {path.name: path.read_bytes() for path in out.iterdir()}
    assert hub.files == written
    assert {"adapter_config.json", "adapter_model.safetensors", CARD_NAME} <= written.keys()
    assert load(hub.files["adapter_model.safetensors"])
    # The card: what the hub reads, and the digest of the run.
    front: Any = ModelCard(written[CARD_NAME].decode()).data
    assert (front.library_name, front.pipeline_tag) == ("peft", "text-generation")
    assert {"lora", "transformers", "rpo"} <= set(front.tags)
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    text = written[CARD_NAME].decode()
    assert f"`{lines[-1]['parameters_sha256']}`" in text
    assert f"| `eval_loss` | {lines[-2]['eval_loss']:.6g} |" in text
    assert "| steps | 2 |" in text
    assert "arxiv.org/abs/2405.16436" in text
    # The run has one, too; a card of the user stays in the repository and in a folder.
    assert is_generated_card(Path("run", CARD_NAME).read_text())
    hub.files = {CARD_NAME: b"# Mine"}
    again = ["--out", str(tmp_path / "again"), "--push-to-hub", NAME]
    assert main(["export", "run", "--adapter", "--step", "1", *again]) == 0
    assert hub.files[CARD_NAME] == b"# Mine"
    assert "| steps | 1 |" in (tmp_path / "again" / CARD_NAME).read_text()
    (tmp_path / "again" / CARD_NAME).write_text("# Mine")
    assert not write_model_card(tmp_path / "again", text)
    assert (tmp_path / "again" / CARD_NAME).read_text() == "# Mine"


def test_raises_in_one_line_before_the_export(
    run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(run)
    for name in ("policy", "my-lab/policy@v1", "my lab/policy", "my-lab/a--b"):
        error = refusal(capsys, "--push-to-hub", name)
        assert "argument --push-to-hub: " in error
        assert "must have the form" in error or "is not a valid name" in error
    assert "argument --private: goes with --push-to-hub" in refusal(capsys, "--private")
    assert not hub.requests
    assert "the token may not write there" in refusal(capsys, "--push-to-hub", "others/policy")
    hub.is_private = False
    assert "is public" in refusal(capsys, "--push-to-hub", NAME, "--private")
    hub.role = "read"
    assert "the token may only read" in refusal(capsys, "--push-to-hub", NAME)
    hub.accepts = False
    assert "does not accept the token" in refusal(capsys, "--push-to-hub", NAME)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "is out of reach" in refusal(capsys, "--push-to-hub", NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refusal(capsys, "--push-to-hub", NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert "there is no token" in refusal(capsys, "--push-to-hub", NAME)
    assert not hub.files


def test_raises_with_the_command_for_another_upload_if_it_fails(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("{}")
    target = upload.UploadTarget("others/policy", "v2")
    with pytest.raises(ValueError, match=r"others/policy: .* is complete: upload it with `hf up"):
        upload.upload_folder(tmp_path / "out", target, message="Step 1")
    with pytest.raises(ValueError, match=r"^others/policy: there is no such user or organizati"):
        upload.remote_text(target, CARD_NAME)


def test_closed_form_every_objective_has_a_definition() -> None:
    for name in PREFERENCE_LOSSES:
        definition = objective_definition(ObjectiveConfig(method=name))
        assert definition.startswith(f"* `{name}`: the ")
        assert definition.count("$") % 2 == 0
        assert ":math:" not in definition
    rpo = objective_definition(ObjectiveConfig(beta=0.5, eta=0.1)).splitlines()
    assert rpo[1].startswith(r"* $\eta\beta$ = 0.05 times `sft`: $-\log\pi(a_0|x)$")
