"""newllm_core.batch: strict parameters, files of a run, several runs."""

import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
from data_helpers import numbered_rows, write_jsonl
from nbformat.v4 import new_code_cell, new_notebook

from newllm_core.batch import jobs, notebooks
from newllm_core.batch.__main__ import main
from newllm_core.batch.jobs import BatchError, Job
from newllm_core.runs.files import PROJECT_ROOT, write_json

PARAMETERS = "num_samples = 80  # a config parameter\nlearning_note: str | None = None  # only this notebook's\n"
KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}


def make_notebook(path: Path, *cells: str, parameters: str = PARAMETERS, num_tagged: int = 1) -> Path:
    tagged = [new_code_cell(parameters, metadata={"tags": ["parameters"]}) for _ in range(num_tagged)]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=tagged + [new_code_cell(cell) for cell in cells], metadata=KERNEL), path)
    return path


def printed(path: Path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    return "".join(
        output.text for cell in cells for output in cell.get("outputs", []) if output.get("name") == "stdout"
    )


def refusal(tmp_path: Path, given: dict[str, Any], **notebook: Any) -> str:
    path = make_notebook(tmp_path / "in.ipynb", **notebook)
    with pytest.raises(BatchError) as caught:
        jobs.job_parameters(Job(path, tmp_path / "out.ipynb", given))
    return str(caught.value)


def test_parameters_override_the_profile_and_the_profile_the_defaults(tmp_path: Path) -> None:
    show = "print(num_samples, learning_note, max_epochs, train_range)"
    notebook = make_notebook(tmp_path / "in.ipynb", show)
    profile = tmp_path / "profile.yaml"
    profile.write_text("num_samples: 7\nlearning_note: from the profile\nmax_epochs: 3\n")
    output = notebooks.run_notebook(
        notebook, tmp_path / "out" / "in.ipynb", {"num_samples": 9, "train_range": (0, 9)}, profile
    )
    assert printed(output) == "9 from the profile 3 [0, 9]\n"
    assert sorted(path.name for path in output.parent.iterdir()) == ["in.ipynb"]


def test_batch_goes_on_after_a_failure_and_skips_what_is_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = make_notebook(tmp_path / "good.ipynb", "print(num_samples)")
    bad = make_notebook(tmp_path / "bad.ipynb", "print('before')", "1 / 0", "print('after')")
    jobs = [Job(bad, tmp_path / "out" / "bad.ipynb"), Job(good, tmp_path / "out" / "good.ipynb", {"num_samples": 5})]
    assert [outcome.status for outcome in notebooks.run_batch(jobs)] == ["failed", "finished"]
    lines = capsys.readouterr().out
    assert "[1/2] bad.ipynb failed in " in lines and "ZeroDivisionError: division by zero" in lines
    assert lines.endswith("1 finished, 0 skipped, 1 failed\n")
    assert not jobs[0].output.exists()
    assert printed(tmp_path / "out" / "bad.failed.ipynb") == "before\n"
    assert not list(tmp_path.rglob("*.partial.ipynb"))

    left = jobs[1].output.with_suffix(".partial.ipynb")  # as by a kill between an output and its last step
    left.write_bytes(jobs[1].output.read_bytes())
    (skipped,) = notebooks.run_batch([jobs[1]])
    assert skipped.status == "skipped" and skipped.seconds is None and not left.exists()
    assert not notebooks.is_finished(Job(good, jobs[1].output, {"num_samples": 6})), "other parameters"
    assert not notebooks.is_finished(Job(make_notebook(good, "print('altered')"), jobs[1].output, {"num_samples": 5}))


def test_a_notebook_is_skipped_while_what_it_reads_is_unchanged_wherever_it_lies(tmp_path: Path) -> None:
    text = write_jsonl(tmp_path / "my.jsonl", numbered_rows(30))
    same = Path(shutil.copy(text, tmp_path / "same.jsonl"))
    notebook, output = make_notebook(tmp_path / "in.ipynb", "print(corpus)"), tmp_path / "out" / "in.ipynb"
    one, other = (
        Job(notebook, output, {"corpus": "file", "conversations_file": str(path), "validation_range": [20, 24]})
        for path in (text, same)
    )
    notebooks.run_batch([one])
    assert notebooks.is_finished(one) and notebooks.is_finished(other)
    text.write_bytes(text.read_bytes().replace(b"Answer 7", b"Answer 8"))
    assert not notebooks.is_finished(one) and notebooks.is_finished(other)
    text.unlink()
    (outcome,) = notebooks.run_batch([one])
    assert outcome.status == "failed" and "my.jsonl" in str(outcome.error)
    assert notebooks.is_finished(other), "nothing old is lost"


def test_a_notebook_on_images_reads_all_its_data_sets_and_the_committed_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "REFERENCE_DIR", tmp_path / "reference")
    parameters = 'dataset = "colour"\nwidth = 48\ndata_sets: list = ["mnist-5k"]\n'
    job = Job(make_notebook(tmp_path / "in.ipynb", parameters=parameters), tmp_path / "out.ipynb")
    before = jobs.job_content(job)
    assert before.keys() == {"committed records", "mnist-5k images"}  # colour images are drawn
    write_json(tmp_path / "reference" / "runs" / "one.json", {"loss": 1.0})
    changed = {name for name, content in jobs.job_content(job).items() if content != before[name]}
    assert changed == {"committed records"}


def test_workers_run_notebooks_side_by_side_and_outcomes_keep_the_order_of_the_jobs(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each notebook ends only after the other has begun; the second fails then."""
    wait = (
        "import pathlib, time\nmine, other = (pathlib.Path(name) for name in {})\nmine.touch()\n"
        "deadline = time.monotonic() + 120\n"
        "while not other.exists(): time.sleep(0.05); assert time.monotonic() < deadline"
    )
    places = [str(tmp_path / "a.begun"), str(tmp_path / "b.begun")]
    first = make_notebook(tmp_path / "a.ipynb", wait.format(places), "time.sleep(1)")
    second = make_notebook(tmp_path / "b.ipynb", wait.format(places[::-1]), "1 / 0")
    jobs = [Job(path, tmp_path / "out" / path.name) for path in (first, second)]
    outcomes = notebooks.run_batch(jobs, workers=2)
    assert [outcome.job for outcome in outcomes] == jobs
    assert [outcome.status for outcome in outcomes] == ["finished", "failed"]
    assert notebooks.is_finished(jobs[0]) and "ZeroDivisionError" in str(outcomes[1].error)
    assert "%|" not in capfd.readouterr().err, "bars of two notebooks write over each other"
    with pytest.raises(BatchError, match="workers: expected at least 1, given 0"):
        notebooks.run_batch(jobs, workers=0)


@pytest.mark.parametrize(("failures", "status"), [(2, "finished"), (9, "failed")])
def test_a_kernel_that_dies_or_never_answers_is_started_again(
    failures: int, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = list[Path]()

    def execute(notebook: Path, partial: Path, injected: dict[str, Any], progress_bar: bool) -> Any:
        tries.append(partial)
        executed = nbformat.read(notebook, as_version=4)
        nbformat.write(executed, partial)
        if len(tries) <= failures:
            raise RuntimeError("Kernel didn't respond in 60 seconds")
        executed.metadata["papermill"] = {}
        return executed

    monkeypatch.setattr(notebooks.papermill, "execute_notebook", execute)
    (outcome,) = notebooks.run_batch([Job(make_notebook(tmp_path / "in.ipynb"), tmp_path / "out" / "in.ipynb")])
    assert (outcome.status, len(tries)) == (status, 3)
    assert outcome.job.output.exists() == (status == "finished")
    assert status == "finished" or "Kernel didn't respond in 60 seconds" in str(outcome.error)


def test_command_line_runs_a_notebook_with_parameters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notebook = make_notebook(tmp_path / "in.ipynb", "print(num_samples, phase1_learning_rate)")
    given = ["-p", "num_samples", "4", "-p", "phase1_learning_rate", "1e-3"]
    assert main([str(notebook), *given, "--out", str(tmp_path / "out")]) == 0
    assert printed(tmp_path / "out" / "in.ipynb") == "4 0.001\n"
    assert "[1/1] in.ipynb finished in " in capsys.readouterr().out


def test_misspelled_parameter_is_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = make_notebook(tmp_path / "good.ipynb", "print(num_samples)")
    jobs = [Job(good, tmp_path / "1.ipynb"), Job(good, tmp_path / "2.ipynb", {"num_sample": 5})]
    with pytest.raises(BatchError, match="unknown parameter 'num_sample'. Did you mean 'num_samples'"):
        notebooks.run_batch(jobs)
    assert main([str(good), "-p", "learning_not", "x", "--out", str(tmp_path)]) == 1
    assert "Did you mean 'learning_note'" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good.ipynb"]


@pytest.mark.parametrize("num_tagged", [0, 2])
def test_anything_but_one_parameters_cell_is_refused(tmp_path: Path, num_tagged: int) -> None:
    message = refusal(tmp_path, {}, num_tagged=num_tagged)
    assert f"expected exactly one cell tagged 'parameters', found {num_tagged}" in message


@pytest.mark.parametrize("line", ["doubled = 2 * 3 * num", "import os", "a, b = 1, 2", "x: int", "print(1)", "num ="])
def test_parameters_cell_with_more_than_literals_is_refused(tmp_path: Path, line: str) -> None:
    message = refusal(tmp_path, {}, parameters=f"num = 1\n{line}\n")
    assert "takes lines of the form name = literal" in message and "line 2" in message


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"phase1_learning_rate": "fast"}, "Phase1Config.learning_rate: expected float, given 'fast' (str)"),
        ({"num_samples": 0}, "DataConfig.num_samples: expected at least 1, given 0"),
        ({"_num_samples": 3}, "unknown parameter '_num_samples'"),
        ({"learning_note": Path("x")}, "learning_note: expected str | None, given PosixPath('x')"),
        ({"learning_note": 3}, "learning_note: expected str | None, given 3 (int)"),
        ({"num_samples": 10**300}, "DataConfig.num_samples: expected a number between"),
        ({"num_samples": "9" * 5000}, "DataConfig.num_samples: expected"),
        ({"train_range": (0, 10**300)}, "DataConfig.train_range: expected a number between"),
    ],
)
def test_impossible_values_are_refused(tmp_path: Path, parameters: dict[str, Any], expected: str) -> None:
    assert expected in refusal(tmp_path, parameters)


def test_a_profile_that_cannot_be_used_is_refused_with_its_name(tmp_path: Path) -> None:
    profile = tmp_path / "mine.yaml"
    profile.write_text("phase1_learning_rate: fast\n")
    job = Job(make_notebook(tmp_path / "in.ipynb"), tmp_path / "out.ipynb", profile=profile)
    with pytest.raises(BatchError, match=r"mine\.yaml: Phase1Config\.learning_rate: expected float, given 'fast'"):
        jobs.job_parameters(job)
    with pytest.raises(BatchError, match=r"none\.yaml: no such file"):
        jobs.job_parameters(Job(job.notebook, job.output, profile=tmp_path / "none.yaml"))
    with pytest.raises(BatchError, match=r"none\.ipynb: no such notebook"):
        jobs.read_notebook(tmp_path / "none.ipynb")


@pytest.mark.parametrize("content", ["", "not JSON", "[]", "{}", '{"cells": 3}'])
def test_file_that_is_no_notebook_is_refused_and_never_counts_as_finished(tmp_path: Path, content: str) -> None:
    (tmp_path / "out.ipynb").write_text(content)
    with pytest.raises(BatchError, match="expected a notebook, found something else"):
        jobs.read_notebook(tmp_path / "out.ipynb")
    assert not notebooks.is_finished(Job(make_notebook(tmp_path / "in.ipynb"), tmp_path / "out.ipynb"))


def test_outputs_that_would_replace_something_are_refused(tmp_path: Path) -> None:
    notebook, other = (make_notebook(tmp_path / name) for name in ("in.ipynb", "other.ipynb"))
    text = tmp_path / "mine.partial.ipynb"
    text.write_text("my notes")
    for output, message in (
        (tmp_path / "README.md", r"README\.md: expected an output that ends in \.ipynb"),
        (other, r"other\.ipynb: there is something else than an executed notebook"),
        (tmp_path / "mine.ipynb", r"mine\.partial\.ipynb: there is something else"),
    ):
        with pytest.raises(BatchError, match=message):
            notebooks.run_batch([Job(notebook, output)], again=True)
    assert text.read_text() == "my notes"
    with pytest.raises(BatchError, match="the output would replace the notebook"):
        notebooks.run_notebook(notebook, notebook)
    jobs = [Job(notebook, tmp_path / "out.ipynb", {"num_samples": number}) for number in (1, 2)]
    with pytest.raises(BatchError, match=r"out\.ipynb: the output of two jobs"):
        notebooks.run_batch(jobs)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_what_a_killed_process_has_left_of_a_notebook_is_replaced(share: float, tmp_path: Path) -> None:
    notebook = make_notebook(tmp_path / "in.ipynb", "print('once')")
    content = notebook.read_bytes()
    (tmp_path / "out.partial.ipynb").write_bytes(content[: int(share * len(content))])
    assert printed(notebooks.run_notebook(notebook, tmp_path / "out.ipynb")) == "once\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.ipynb", "out.ipynb"]


def test_batch_file_paths_start_at_the_projects_folder(tmp_path: Path) -> None:
    file = tmp_path / "runs.yaml"
    file.write_text(
        "- notebook: notebooks/a.ipynb\n"
        "- {notebook: notebooks/a.ipynb, output: results/b.ipynb, profile: p.yaml, parameters: {num_samples: 4}}\n"
    )
    first, second = jobs.load_batch(file)
    assert first == Job(PROJECT_ROOT / "notebooks/a.ipynb", jobs.OUTPUT_DIR / "a.ipynb")
    assert second.output == PROJECT_ROOT / "results/b.ipynb"
    assert second.profile == PROJECT_ROOT / "p.yaml" and second.parameters == {"num_samples": "4"}


@pytest.mark.parametrize(
    "content",
    [
        "notebook: a.ipynb\n",
        "- output: b.ipynb\n",
        "- {notebook: a, ouput: b}\n",
        "- 3\n",
        "- notebook: [a]\n",
        "- {notebook: a, parameters: 3}\n",
    ],
)
def test_batch_file_of_another_form_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "runs.yaml").write_text(content)
    with pytest.raises(BatchError, match="expected a list of jobs|a job of a batch: expected (notebook|parameters)"):
        jobs.load_batch(tmp_path / "runs.yaml")


@pytest.mark.parametrize("arguments", [[], ["a.ipynb", "--batch", "b.yaml"], ["--batch", "b.yaml", "-p", "a", "1"]])
def test_contradictory_command_lines_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "--batch" in capsys.readouterr().err


def test_source_hash_depends_on_cells_and_not_on_outputs(tmp_path: Path) -> None:
    first = notebooks.source_hash(make_notebook(tmp_path / "in.ipynb", "print(1)"))
    notebook = nbformat.read(tmp_path / "in.ipynb", as_version=4)
    notebook.cells[1].outputs = [nbformat.v4.new_output("stream", text="1\n")]
    nbformat.write(notebook, tmp_path / "in.ipynb")
    assert notebooks.source_hash(tmp_path / "in.ipynb") == first
    assert notebooks.source_hash(make_notebook(tmp_path / "in.ipynb", "print(2)")) != first


def test_an_output_that_looks_like_a_notebook_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["notebooks/03_phase2.ipynb", "--out", "out.ipynb"])
    assert "--out: expected a folder, given out.ipynb" in capsys.readouterr().err


WAITING = "import os, pathlib, time; pathlib.Path({!r}).write_text(str(os.getpid())); time.sleep(300)"


def test_workers_and_their_kernels_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    places = [tmp_path / "a.pid", tmp_path / "b.pid"]
    paths = [str(make_notebook(place.with_suffix(".ipynb"), WAITING.format(str(place)))) for place in places]
    command = [sys.executable, "-m", "newllm_core.batch", *paths, "--out", str(tmp_path / "out"), "--workers", "2"]
    parent = psutil.Popen(command, cwd=PROJECT_ROOT)
    wait_until(lambda: all(place.exists() and place.read_text() for place in places))
    family = parent.children(recursive=True)
    assert {int(place.read_text()) for place in places} <= {process.pid for process in family}
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
