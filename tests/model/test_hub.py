"""A model put on the Hub and fetched from there, through the real client, against a Hub on the loopback address."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from core_helpers import make_model
from hub_server import HubServer, hub_server

from newllm_core.runs.files import PROJECT_ROOT

PUSH = """
import json, sys
from newllm_core.model import NewLLM
from newllm_core.runs.files import RunError
model, answers = NewLLM.from_pretrained("model"), {}
answers["address"] = model.push_to_hub("me/mine", token="hf_right", message="first")
for name, token in (("me/mine", "hf_wrong"), ("me/no such name", "hf_right")):
    try:
        model.push_to_hub(name, token=token)
    except RunError as error:
        answers[name + token] = str(error)
print(json.dumps(answers))
"""
FETCH = """
import json, sys
from newllm_core.model import NewLLM
from newllm_core.runs.files import RunError
try:
    model = NewLLM.from_pretrained(sys.argv[1], revision=sys.argv[2] or None)
    print(json.dumps({name: value.tolist() for name, value in model.state_dict().items()}))
except RunError as error:
    print(json.dumps(str(error)))
"""


def asked(server: HubServer, folder: Path, code: str, *arguments: str) -> Any:
    environment = {
        **os.environ, "HF_ENDPOINT": server.address, "HF_HOME": str(folder / "cache"), "PYTHONPATH": str(PROJECT_ROOT),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=folder, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_model_is_pushed_and_fetched_again_and_what_fails_is_said(tmp_path: Path) -> None:
    model = make_model(num_layers=2)
    model.save_pretrained(tmp_path / "model")
    with hub_server({}) as server:
        said = asked(server, tmp_path, PUSH)
        assert said["address"].startswith(f"{server.address}/me/mine/commit/")
        assert "me/mine: cannot be written on the Hub (HfHubHTTPError" in said["me/minehf_wrong"]
        assert "me/no such name: cannot be written on the Hub (HFValidationError" in said["me/no such namehf_right"]
        files = server.repositories["models/me/mine"]
        assert set(files) == {"config.json", "model.safetensors", "README.md"}
        assert "# me/mine" in files["README.md"].decode()
        fetched = asked(server, tmp_path, FETCH, "me/mine", "")
        assert fetched.keys() == model.state_dict().keys()
        assert all(torch.equal(torch.tensor(value), model.state_dict()[name]) for name, value in fetched.items())
        assert "cannot be fetched (RevisionNotFoundError" in asked(server, tmp_path, FETCH, "me/mine", "v2")
        assert "me/other: there is no such folder" in asked(server, tmp_path, FETCH, "me/other", "")
        server.kill()
        assert asked(server, tmp_path, FETCH, "me/mine", "") == fetched, "from the local cache"
