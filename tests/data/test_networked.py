"""The networked half through the real clients (`datasets`, `huggingface_hub`), against a Hub on the loopback address.

Each case runs in a process of its own: the clients read their environment once, when they are imported.
"""

import io
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from hub_server import HubServer, hub_server
from safetensors.torch import save
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from newllm_core.runs.files import PROJECT_ROOT

ULTRACHAT, GPT2 = "datasets/HuggingFaceH4/ultrachat_200k", "models/openai-community/gpt2"
SHARDS, ROWS = 3, 12
PRELUDE = """
import datasets, json, sys, time
import huggingface_hub.utils._http as hub_http
# The clients wait between their attempts, minutes in all: here they try as often, at once.
time.sleep = lambda seconds: None
datasets.config.STREAMING_READ_RETRY_INTERVAL = 0
datasets.config.STREAMING_READ_MAX_RETRIES = 2
from pathlib import Path
from newllm_core.config.hyperparameters import DataConfig
from newllm_core.data.corpus import load_conversations, open_corpus
from newllm_core.data.embeddings import gpt2_file, load_embeddings
from newllm_core.data.errors import DataError
def say(**values): print("SAID", json.dumps(values))
"""


def message_rows(first: int, stop: int) -> list[dict[str, Any]]:
    """As the published data set, with one message that is empty; long enough for several reads a file."""
    rows = []
    for number in range(first, stop):
        answer = (
            "" if number == 3 else f"Answer {number} " + "".join(random.Random(number).choices("abcdefgh ", k=20_000))
        )
        turns = [("user", f"Question {number}?"), ("assistant", answer), ("user", "Thanks.")]
        messages = [{"content": text, "role": role} for role, text in turns]
        rows.append({"prompt": turns[0][1], "prompt_id": f"{number:064x}", "messages": messages})
    return rows


def conversations(first: int, stop: int) -> list[str]:
    return ["\n".join(message["content"] for message in row["messages"]) for row in message_rows(first, stop)]


def parquet(rows: list[dict[str, Any]]) -> bytes:
    content = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), content, row_group_size=4)
    return content.getvalue()


def ultrachat(stated_rows: int = SHARDS * ROWS) -> dict[str, bytes]:
    card = (
        "---\ndataset_info:\n  splits:\n  - name: train_sft\n    num_bytes: 1\n"
        f"    num_examples: {stated_rows}\nconfigs:\n- config_name: default\n  data_files:\n"
        "  - split: train_sft\n    path: data/train_sft-*\n  - split: test_sft\n    path: data/test_sft-*\n---\n"
    )
    shards = {
        f"data/train_sft-{number:05d}-of-{SHARDS:05d}.parquet": parquet(
            message_rows(ROWS * number, ROWS * (number + 1))
        )
        for number in range(SHARDS)
    }
    return {"README.md": card.encode(), **shards, "data/test_sft-00000-of-00001.parquet": parquet(message_rows(90, 91))}


def gpt2_wte() -> Tensor:
    return torch.arange(50257, dtype=torch.float32)[:, None].expand(-1, 768).contiguous() / 50257


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with hub_server({ULTRACHAT: ultrachat()}) as server:
        yield server


def asked(server: HubServer, home: Path, code: str, *, offline: bool = False) -> dict[str, Any]:
    """What ``code`` says in a fresh process, whose Hub is ``server`` and whose caches are in ``home``."""
    environment = {
        **os.environ, "HF_ENDPOINT": server.address, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1" if offline else "0",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TQDM_DISABLE": "1",
        "PYTHONPATH": str(PROJECT_ROOT), "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    environment.pop("HF_TOKEN", None)
    command = [sys.executable, "-c", PRELUDE + code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=home, check=False, timeout=300)
    said = [line.removeprefix("SAID ") for line in done.stdout.splitlines() if line.startswith("SAID ")]
    assert said, done.stderr
    answer: dict[str, Any] = json.loads(said[-1])
    return answer


# --- UltraChat

READ_ALL = """
try:
    texts, error = load_conversations(DataConfig(corpus="ultrachat"), 1000), None
except DataError as failure:
    texts, error = None, str(failure)
say(texts=texts, error=error)
"""


def test_ultrachat_is_every_row_of_every_file_in_order_an_empty_message_too(hub: HubServer, tmp_path: Path) -> None:
    found = asked(hub, tmp_path, READ_ALL)
    assert found["texts"] == conversations(0, SHARDS * ROWS)
    assert found["texts"][3] == "Question 3?\n\nThanks."
    assert not any("test_sft" in path for _, path, _ in hub.requests if "/resolve/" in path)


def test_no_more_of_ultrachat_is_fetched_than_asked_for(hub: HubServer, tmp_path: Path) -> None:
    found = asked(hub, tmp_path, 'say(texts=load_conversations(DataConfig(corpus="ultrachat"), 5))')
    assert found["texts"] == conversations(0, 5)
    assert not any("00001-of" in path for _, path, _ in hub.requests if "/resolve/" in path)


def test_reading_goes_on_after_a_dropped_connection(hub: HubServer, tmp_path: Path) -> None:
    dropped = []

    def breaks(path: str, sent: int) -> bool:
        if "00001-of" in path and sent > 8000 and not dropped:
            dropped.append(path)
            return True
        return False

    hub.breaks = breaks
    found = asked(hub, tmp_path, READ_ALL)
    assert dropped and found["texts"] == conversations(0, SHARDS * ROWS)


READ_EACH = """
from newllm_core.data import corpus
errors = {}
for case in ("dropped", "gone", "refused", "short", "page", "absent"):
    corpus.ULTRACHAT = "cases/" + case, "train_sft"
    try:
        errors[case] = len(load_conversations(DataConfig(corpus="ultrachat"), 1000))
    except DataError as failure:
        errors[case] = str(failure)
say(**errors)
"""


def test_what_breaks_off_for_good_is_an_error_and_never_a_shorter_corpus(tmp_path: Path) -> None:
    cases = {case: ultrachat() for case in ("dropped", "gone", "refused", "page")}
    cases["page"]["data/train_sft-00001-of-00003.parquet"] = b"<html>please log in</html>" * 400
    cases["short"] = ultrachat(stated_rows=40)
    with hub_server({f"datasets/cases/{case}": files for case, files in cases.items()}) as server:
        server.breaks = lambda path, sent: "dropped/data/train_sft-00002" in path and sent > 8000
        statuses = {"gone": 404, "refused": 503}
        server.status = lambda path: statuses.get(path.split("/")[1]) if "train_sft-00002" in path else None
        errors = asked(server, tmp_path, READ_EACH)
    for case in ("dropped", "gone", "refused"):
        assert f"cases/{case} cannot be read after row 24" in errors[case]
    assert "cases/page cannot be read after row 12" in errors["page"]
    assert errors["short"] == "cases/short:train_sft: expected 40 rows, as its card says, read 36"
    assert "cases/absent cannot be read (DatasetNotFoundError" in errors["absent"]


def test_a_server_that_is_killed_in_the_middle_is_an_error_and_the_next_run_starts_anew(
    hub: HubServer, tmp_path: Path
) -> None:
    def breaks(path: str, sent: int) -> bool:
        if "00001-of" in path:
            hub.killed = True  # and with it every other connection
        return False

    hub.breaks = breaks
    found = asked(hub, tmp_path, READ_ALL)
    assert found["texts"] is None and "cannot be read after row 12" in found["error"]
    hub.killed, hub.breaks = False, lambda path, sent: False
    assert asked(hub, tmp_path, READ_ALL)["texts"] == conversations(0, SHARDS * ROWS)


# --- GPT-2's embeddings

READ_GPT2 = """
try:
    matrix, error = load_embeddings(DataConfig(embeddings="gpt2"), 768, 0, None, Path(".")), None
    say(sum=float(matrix.matrix.double().sum()), source=matrix.source_sha256, error=None)
except DataError as failure:
    say(sum=None, error=str(failure))
"""


@pytest.fixture(scope="module")
def gpt2_bytes() -> bytes:
    return save({"wte.weight": gpt2_wte(), "wpe.weight": torch.zeros(4, 768)})


def test_gpt2_is_fetched_once_and_goes_on_after_a_dropped_connection(tmp_path: Path, gpt2_bytes: bytes) -> None:
    dropped: list[int] = []

    def breaks(path: str, sent: int) -> bool:
        if sent > len(gpt2_bytes) // 2 and not dropped:
            dropped.append(sent)
            return True
        return False

    with hub_server({GPT2: {"model.safetensors": gpt2_bytes}}) as server:
        server.breaks = breaks
        found = asked(server, tmp_path, READ_GPT2)
        assert dropped and found["sum"] == float(gpt2_wte().double().sum())
        # What was there was not fetched again, up to the client's last buffer.
        assert server.sent["openai-community/gpt2/model.safetensors"] < len(gpt2_bytes) + (12 << 20)
        before = dict(server.sent)
        assert asked(server, tmp_path, READ_GPT2) == found and server.sent == before
        server.kill()
        assert asked(server, tmp_path, READ_GPT2) == found, "from the local cache"


def test_gpt2_is_an_error_while_the_server_is_gone_and_resumed_afterwards(tmp_path: Path, gpt2_bytes: bytes) -> None:
    with hub_server({GPT2: {"model.safetensors": gpt2_bytes}}) as server:

        def breaks(path: str, sent: int) -> bool:
            server.killed = server.killed or sent > len(gpt2_bytes) // 2
            return server.killed

        server.breaks = breaks
        found = asked(server, tmp_path, READ_GPT2)
        assert found["sum"] is None and 'embeddings="gpt2": openai-community/gpt2' in found["error"]
        server.killed, server.breaks = False, lambda path, sent: False
        assert asked(server, tmp_path, READ_GPT2)["sum"] == float(gpt2_wte().double().sum())


def test_a_cache_that_has_expired_is_renewed_and_the_new_content_is_what_is_recorded(
    tmp_path: Path, gpt2_bytes: bytes
) -> None:
    with hub_server({GPT2: {"model.safetensors": gpt2_bytes}}) as server:
        old = asked(server, tmp_path, READ_GPT2)
        server.commit = "beef" * 10
        server.repositories[GPT2]["model.safetensors"] = save({"wte.weight": gpt2_wte() + 1})
        new = asked(server, tmp_path, READ_GPT2)
        assert new["sum"] > old["sum"] + 1e7 and new["source"] != old["source"]


def test_an_absent_repository_is_said_to_be_so(tmp_path: Path) -> None:
    with hub_server({}) as server:
        error = asked(server, tmp_path, READ_GPT2)["error"]
    assert (
        "openai-community/gpt2/model.safetensors cannot be reached" in error and '"whisper-tiny.en" does not' in error
    )


# --- Any model's embeddings and tokenizer


def tiny_tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


MATRIX = torch.randn(260, 6, generator=torch.Generator().manual_seed(1)).bfloat16()  # four rows of padding


def hub_model(*, sharded: bool) -> dict[str, bytes]:
    tokenizer = tiny_tokenizer()
    tokenizer.enable_truncation(5)  # as a model with short windows is saved
    big = {f"model.layers.{number}.mlp.weight": torch.zeros(500, 500) for number in range(4)}
    name = "model.embed_tokens.weight"
    files = {"tokenizer.json": tokenizer.to_str().encode(), "config.json": b"{}"}
    if not sharded:
        return {**files, "model.safetensors": save({**big, name: MATRIX})}
    with_it = {"z.weight": MATRIX + 1, name: MATRIX}
    shards = {"model-00001-of-00002.safetensors": big, "model-00002-of-00002.safetensors": with_it}
    weight_map = {tensor: shard for shard, tensors in shards.items() for tensor in tensors}
    index = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
    return {**files, "model.safetensors.index.json": index, **{shard: save(one) for shard, one in shards.items()}}


READ_HUB = """
from newllm_core.data.content import content_read
from newllm_core.data.tokens import load_token_streams
from newllm_core.data.vocabulary import token_byte_lengths
def read(name):
    config = DataConfig(embeddings="hub:me/" + name, num_samples=3)
    try:
        found = load_embeddings(config, 6, 0, None, Path("data"))
        streams = load_token_streams(config, Path("data"))
    except DataError as failure:
        return str(failure)
    tokens, vocabulary = streams.train.tokens, streams.train.vocabulary
    return dict(
        matrix=found.matrix.tolist(), read=content_read(config), text=vocabulary.tokenizer.decode(tokens.tolist()),
        bytes=int(token_byte_lengths(vocabulary)[tokens].sum()), tokens=len(tokens),
    )
"""


def test_of_any_model_the_embedding_alone_is_read_and_its_tokenizer_cuts_nothing(tmp_path: Path) -> None:
    models_of = {"one": hub_model(sharded=False), "sharded": hub_model(sharded=True)}
    code = READ_HUB + 'say(one=read("one"), sharded=read("sharded"))'
    with hub_server({f"models/me/{name}": files for name, files in models_of.items()}) as server:
        found = asked(server, tmp_path, code)
        for name, files in models_of.items():
            fetched = sum(sent for path, sent in server.sent.items() if f"{name}/model" in path and "index" not in path)
            assert 0 < fetched < 40_000 < 4_000_000 < sum(len(content) for content in files.values())
        server.kill()
        assert asked(server, tmp_path, code, offline=True) == found, "kept, so no network is needed again"
    kept = MATRIX[:256].float()
    for name, read in found.items():
        torch.testing.assert_close(torch.tensor(read["matrix"]), kept * 0.144 / kept.double().std(correction=0).float())
        assert read["read"]["embeddings"].startswith(f"me/{name}@c0ffee")
        assert len(read["text"].encode()) == read["bytes"] == read["tokens"] > 100


BROKEN: dict[str, tuple[Any, str]] = {
    "untokenized": (lambda files: files.pop("tokenizer.json"), "tokenizer.json cannot be read"),
    "empty": (lambda files: files.pop("model.safetensors"), "model.safetensors cannot be read"),
    "garbled": (lambda files: files.update({"tokenizer.json": b"{}"}), "tokenizer.json cannot be read"),
    "few": (
        lambda files: files.update({"model.safetensors": save({"model.embed_tokens.weight": MATRIX[:200]})}),
        "expected a row for each of 256 ids of its tokenizer, found 200 rows",
    ),
    "nameless": (lambda files: files.update({"model.safetensors": save({"other": MATRIX})}), "found other"),
    "narrow": (
        lambda files: files.update({"model.safetensors": save({"wte.weight": MATRIX[:, :4].clone()})}),
        'embeddings="hub:me/narrow" has 4 columns, the configuration asks for embed_dim=6',
    ),
}


def test_a_model_that_cannot_be_used_is_refused_with_its_name(tmp_path: Path) -> None:
    repositories = {f"models/me/{name}": hub_model(sharded=False) for name in BROKEN}
    for name, (change, _) in BROKEN.items():
        change(repositories[f"models/me/{name}"])
    code = READ_HUB + f"say(**{{name: read(name) for name in {[*BROKEN, 'absent']}}})"
    with hub_server(repositories) as server:
        found = asked(server, tmp_path, code)
    for name, (_, message) in BROKEN.items():
        assert isinstance(found[name], str) and message in found[name] and f"me/{name}" in found[name]
    assert "RepositoryNotFoundError" in found["absent"] or "me/absent" in found["absent"]
