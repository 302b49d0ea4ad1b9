"""Runs and searches on images are used again for the same images, wherever they lie, and never for others."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_vision_data import write_image_folder
from test_vision_search import GATE, SEARCH, SPACE, idx_folder
from test_vision_training import SHORT

from newllm_core.runs.files import RunError
from newllm_core.vision import experiment as vision_module
from newllm_core.vision.config import VisionDataConfig
from newllm_core.vision.experiment import run_vision
from newllm_core.vision.search.plan import SearchPlan, keep_plan
from newllm_core.vision.settings import VisionSettings, for_data_set, run_name


def must_not_train(*arguments: Any, **options: Any) -> None:
    raise AssertionError("trained again")


def small_vision(data: VisionDataConfig) -> VisionSettings:
    return for_data_set(SHORT, data)


def a_folder(root: Path) -> tuple[VisionDataConfig, Path]:
    folder = write_image_folder(root / "images", ("cat", "dog"))
    return VisionDataConfig("image-folder", str(folder), image_size=16), folder / "test" / "dog" / "0001.png"


def a_zip(root: Path) -> tuple[VisionDataConfig, Path]:
    folder = write_image_folder(root / "images", ("cat", "dog"))
    archive = Path(shutil.make_archive(str(root / "images"), "zip", folder))
    return VisionDataConfig("image-folder", str(archive), image_size=16), archive


def an_idx_folder(root: Path) -> tuple[VisionDataConfig, Path]:
    return idx_folder(root / "idx"), root / "idx" / "t10k-labels-idx1-ubyte"


@pytest.mark.parametrize("make", [a_folder, a_zip, an_idx_folder])
def test_a_run_on_images_and_a_search_with_its_plan(
    make: Callable[[Path], tuple[VisionDataConfig, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, read = make(tmp_path / "here")
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    copy = dataclasses.replace(data, path=data.path and data.path.replace("here", "there"))
    one, same = small_vision(data), small_vision(copy)
    plan, same_plan = (SearchPlan(SHORT, GATE, (part,), SEARCH, SPACE) for part in (data, copy))
    made = run_vision(one, tmp_path / "run", show_progress=False)
    keep_plan(plan, tmp_path / "study")
    monkeypatch.setattr(vision_module, "train_vision", must_not_train)
    assert run_vision(same, tmp_path / "run", show_progress=False) == made
    assert run_name(same) == run_name(one)
    keep_plan(same_plan, tmp_path / "study")
    content = bytearray(read.read_bytes())
    content[-1] ^= 1
    read.write_bytes(content)
    with pytest.raises(RunError, match="it read other images"):
        run_vision(one, tmp_path / "run", show_progress=False)
    with pytest.raises(RunError, match=f"it read other {data.dataset} images"):
        keep_plan(plan, tmp_path / "study")
    assert (run_name(same) == run_name(one)) == (data.dataset != "image-folder")
