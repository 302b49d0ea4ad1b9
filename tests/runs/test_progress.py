"""Progress bars: shown to people, silent where TQDM_DISABLE asks for it, in terminals and notebooks alike."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tqdm.notebook import tqdm as notebook_tqdm
from tqdm.std import tqdm as terminal_tqdm

from newllm_core.experiment.estimate import duration_text
from newllm_core.runs import progress
from newllm_core.runs.progress import progress_bar


def test_a_bar_is_drawn_with_its_description_and_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setattr(progress, "tqdm", terminal_tqdm)
    drawn = io.StringIO()
    assert list(progress_bar(range(3), desc="steps", file=drawn)) == [0, 1, 2]
    assert "steps: 100%" in drawn.getvalue() and "3/3" in drawn.getvalue()


@pytest.mark.parametrize("kind", [terminal_tqdm, notebook_tqdm])
def test_the_environment_silences_bars_and_items_still_come(
    kind: type, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setattr(progress, "tqdm", kind)
    bar = progress_bar(range(3), desc="steps")
    assert bar.disable
    assert list(bar) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_disable_silences_one_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setattr(progress, "tqdm", terminal_tqdm)
    drawn = io.StringIO()
    assert list(progress_bar(range(2), disable=True, file=drawn)) == [0, 1]
    assert drawn.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (41.7, "42 s"),
        (60, "1.0 minutes"),
        (738, "12.3 minutes"),
        (5399, "90.0 minutes"),
        (8280, "2.3 hours"),
    ],
)
def test_a_duration_is_named_in_the_unit_a_reader_would_choose(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


@given(st.floats(0, 1e7))
def test_a_duration_reads_back_within_its_rounding(seconds: float) -> None:
    number, unit = duration_text(seconds).split()
    size = {"s": 1, "minutes": 60, "hours": 3600}[unit]
    assert abs(float(number) * size - seconds) <= (0.5 if unit == "s" else 0.05 * size) * (1 + 1e-9)
