"""The runtime's line, code that is older than the disk's, and Google Drive where it is not mounted yet."""

import sys
import types
import warnings
from pathlib import Path

import pytest
import torch

import newllm_core
from newllm_core.runs import runtime


def test_the_line_names_the_machine_its_versions_and_a_profile_that_is_there() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a checkout that is worked on while the tests run
        text = runtime.machine_text()
    assert torch.__version__.split("+")[0] in text and "GiB of memory" in text
    profile = text.rpartition("profile that fits: ")[2]
    assert (Path(newllm_core.__file__).parents[1] / f"notebooks/profiles/{profile}.yaml").is_file()


@pytest.mark.parametrize(("gib", "profile"), [(15, "colab"), (2, "cpu")])
def test_the_profile_goes_by_the_gpus_memory(monkeypatch: pytest.MonkeyPatch, gib: int, profile: str) -> None:
    properties = types.SimpleNamespace(total_memory=gib * runtime.GIB, name="GPU")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    assert runtime.fitting_profile() == profile


def test_code_that_changed_since_it_was_imported_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    newest = max(path.stat().st_mtime for path in Path(newllm_core.__file__).parent.rglob("*.py"))
    monkeypatch.setattr(newllm_core, "IMPORTED", newest)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runtime.warn_of_older_code()
    own = Path(runtime.__file__).stat().st_mtime
    monkeypatch.setattr(newllm_core, "IMPORTED", own - 1)
    with pytest.warns(UserWarning, match="runtime.py|and .* more.*restart the kernel"):
        runtime.warn_of_older_code()


def test_a_drive_is_mounted_on_colab_alone_and_where_it_is_wanted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mounted: list[str] = []
    monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
    runtime.mount_drive("/content/drive/MyDrive/new-llm")  # no Colab
    colab, drive = types.ModuleType("google.colab"), types.ModuleType("google.colab.drive")
    drive.mount = mounted.append  # type: ignore[attr-defined]
    for name, module in (("google.colab", colab), ("google.colab.drive", drive)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release")
    runtime.mount_drive(None)
    runtime.mount_drive(str(tmp_path))
    assert mounted == []
    runtime.mount_drive("/content/drive/MyDrive/new-llm")
    assert mounted == ["/content/drive"]
