"""What of the GPU's benchmark a CPU can test: its packed inputs, its comparisons, its table and picture."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import gpu_inputs, gpu_report
from benchmarks.gpu_inputs import LANGUAGE, best_settings, read_language, restore_images, write_images, write_language
from newllm_core.data.embeddings import scaled_to_gpt2
from newllm_core.runs.files import read_json
from newllm_core.studies.variants import BEST
from newllm_core.vision.data.registry import IMAGE_SOURCES

RECORD = Path(__file__).resolve().parents[1] / "results" / "reference" / "gpu.json"


def test_packed_text_and_embeddings_come_back_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_inputs, "DATA_DIR", tmp_path / "data")
    few = np.random.default_rng(0).standard_normal((64, 384)).astype(np.float16)
    monkeypatch.setattr(gpu_inputs, "read_float16_rows", lambda *given: few)
    write_language(tmp_path / LANGUAGE, num_conversations=2)
    found = read_language(tmp_path / LANGUAGE)
    assert torch.equal(found.embeddings, scaled_to_gpt2(few))
    assert len(found.train) == int(found.train_boundaries[-1]) and len(found.train_boundaries) == 3
    assert len(found.validation) == int(found.validation_boundaries[-1])
    assert int(found.byte_lengths[found.train].min()) > 0


def test_packed_images_come_back_as_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = {"train/cat/1.jpg": b"one", "train/dog/2.jpg": b"", "test/cat/3.jpg": bytes(300)}
    with zipfile.ZipFile(tmp_path / "given.zip", "w") as archive:
        archive.mkdir("train")
        for name, content in contents.items():
            archive.writestr(name, content)
    source = (IMAGE_SOURCES["cifar10-jpeg"], tmp_path / "given.zip")
    monkeypatch.setattr(gpu_inputs, "locate_source", lambda config: source)
    write_images(tmp_path / "images.xz")
    restore_images(tmp_path / "images.xz", tmp_path / "again.zip")
    with zipfile.ZipFile(tmp_path / "again.zip") as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == contents


def test_the_profile_of_the_best_model_is_its_variant() -> None:
    settings = best_settings()
    assert settings.model.context_dim == BEST["context_dim"] and settings.phase1.objective == BEST["objective"]


def test_table_and_picture_are_drawn_from_the_committed_record() -> None:
    record = read_json(RECORD)
    text = gpu_report.table(record)
    assert text.count("\n| ") > 15 and record["machine"]["gpu"] in text
    assert len(gpu_report.draw(record).axes) == 3
