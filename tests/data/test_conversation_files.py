"""The user's own file: what is read, what is refused and how that is said, and what hostile content does."""

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from data_helpers import conversation, file_config, numbered_rows, write_jsonl, write_parquet
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from newllm_core.data import places
from newllm_core.data.conversations import conversations_from_rows
from newllm_core.data.corpus import load_conversations, open_corpus
from newllm_core.data.errors import DataError
from newllm_core.data.rows import MAX_CONVERSATION_BYTES

SUFFIXES = {".jsonl": write_jsonl, ".parquet": write_parquet}


def test_parquet_without_pyarrow_names_the_install_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "mine.parquet", numbered_rows(1))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(DataError, match="a .parquet file needs the package pyarrow: pip install pyarrow$"):
        load_conversations(file_config(path), 1)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_both_file_formats_give_the_message_contents_joined_by_newlines(suffix: str, tmp_path: Path) -> None:
    rows = [conversation("Hi", "Hello\u2028there ", "ありがとう"), *numbered_rows(600)]
    path = SUFFIXES[suffix](tmp_path / f"mine{suffix}", rows)
    texts = load_conversations(file_config(path), 1000)
    assert texts[0] == "Hi\nHello\u2028there \nありがとう"
    assert texts == ["\n".join(message["content"] for message in row["messages"]) for row in rows]


contents = st.lists(st.text(min_size=1), min_size=1, max_size=4)


@hypothesis_settings(deadline=None, max_examples=50)
@given(st.lists(contents, min_size=1, max_size=4))
def test_any_text_survives_jsonl(tmp_path_factory: pytest.TempPathFactory, many: list[list[str]]) -> None:
    path = write_jsonl(tmp_path_factory.mktemp("any") / "any.jsonl", [conversation(*texts) for texts in many])
    assert load_conversations(file_config(path), 10) == ["\n".join(texts) for texts in many]


# --- files as people have them


def lines_of(rows: list[Any]) -> list[bytes]:
    return [json.dumps(row).encode() for row in rows]


ROWS = numbered_rows(6)
TEXTS = ["\n".join(message["content"] for message in row["messages"]) for row in ROWS]
MARK = b"\xef\xbb\xbf"  # what some editors put at the start of a file
SAME_LINES = {
    "mark": MARK + b"\n".join(lines_of(ROWS)),
    "marks of joined files": b"\n".join([MARK + line for line in lines_of(ROWS)]),
    "blank lines": b"\n" + b"\n \t\n\r\n".join(lines_of(ROWS)) + b"\n\n\n",
    "carriage returns": b"\r\n".join(lines_of(ROWS)) + b"\r\n",
    "other columns": b"\n".join(lines_of([{"score": float("nan"), "tags": [], **row} for row in ROWS])),
}


@pytest.mark.parametrize("kind", SAME_LINES)
def test_lines_are_read_as_editors_and_exports_leave_them(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(SAME_LINES[kind])
    assert load_conversations(file_config(path), 10) == TEXTS
    assert load_conversations(file_config(path), 2) == TEXTS[:2]


@pytest.mark.parametrize("name", ["mine.JSONL", "mine.Jsonl", "mine.json", "mine.NDJSON"])
def test_ending_may_be_of_any_case(name: str, tmp_path: Path) -> None:
    assert load_conversations(file_config(write_jsonl(tmp_path / name, ROWS)), 10) == TEXTS


def sharegpt(row: dict[str, Any]) -> list[dict[str, str]]:
    return [{"from": message["role"], "value": message["content"]} for message in row["messages"]]


def in_parts(message: dict[str, str]) -> dict[str, Any]:
    return {"role": message["role"], "content": [{"type": "text", "text": message["content"]}]}


SCHEMAS = {
    "ShareGPT": [{"conversations": sharegpt(row)} for row in ROWS],
    "ShareGPT's messages": [{"messages": sharegpt(row)} for row in ROWS],
    "OpenAI's parts": [{"messages": [in_parts(message) for message in row["messages"]]} for row in ROWS],
    "messages as text": [{"messages": json.dumps(row["messages"])} for row in ROWS],
}


@pytest.mark.parametrize("schema", SCHEMAS)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_schemas_in_use_give_the_same_texts(schema: str, suffix: str, tmp_path: Path) -> None:
    path = SUFFIXES[suffix](tmp_path / f"mine{suffix}", SCHEMAS[schema])
    assert load_conversations(file_config(path), 10) == TEXTS


def test_maps_and_dictionaries_of_parquet_give_the_same_texts(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pairs = [[list(message.items()) for message in row["messages"]] for row in ROWS]
    maps = pyarrow.array(pairs, pyarrow.list_(pyarrow.map_(pyarrow.string(), pyarrow.string())))
    fields = [("role", pyarrow.dictionary(pyarrow.int8(), pyarrow.string())), ("content", pyarrow.large_string())]
    encoded = pyarrow.array([row["messages"] for row in ROWS], pyarrow.large_list(pyarrow.struct(fields)))
    for column in (maps, encoded):
        pyarrow.parquet.write_table(pyarrow.table({"messages": column}), tmp_path / "mine.parquet")
        assert load_conversations(file_config(tmp_path / "mine.parquet"), 10) == TEXTS


def test_json_in_binary_columns_is_read(tmp_path: Path) -> None:
    rows = [{"messages": json.dumps(row["messages"]).encode()} for row in ROWS]
    assert load_conversations(file_config(write_parquet(tmp_path / "mine.parquet", rows)), 10) == TEXTS


def test_parts_of_one_message_are_joined_by_newlines(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "First"}, "second"]
    path = write_jsonl(tmp_path / "mine.jsonl", [{"messages": [{"content": parts}, {"content": "third"}]}])
    assert load_conversations(file_config(path), 1) == ["First\nsecond\nthird"]


# --- what has no text

TOOL_CALL = {"role": "assistant", "content": None, "tool_calls": [{"id": "c1"}]}
PICTURE = {"role": "user", "content": [{"type": "image_url", "image_url": "…"}]}
GAPS: list[dict[str, Any]] = [
    {"messages": [{"content": "What time?"}, TOOL_CALL, {"content": "Noon."}]},
    {"messages": [{"role": "system", "content": ""}, {"content": "Hello."}]},
    {"messages": [PICTURE, {"content": "A kettle."}]},
    {"messages": None},
    {"messages": []},
    {"messages": [TOOL_CALL]},
    {"messages": [None, {"content": "Hello again."}]},
]


@pytest.mark.parametrize(
    ("missing_text", "kept", "counts"),
    [
        (
            "skip-message",
            ["What time?\nNoon.", "Hello.", "A kettle.", "Hello again.", "Tea?"],
            "5 messages and 3 conversations",
        ),
        ("skip-conversation", ["Tea?"], "0 messages and 7 conversations"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_has_no_text_is_left_out_with_a_count(
    missing_text: str, kept: list[str], counts: str, suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [*GAPS, conversation("Tea?")]
    if suffix == ".parquet":  # one type for all contents
        rows = [rows[0], rows[1], {"messages": [TOOL_CALL, {"content": "A kettle."}]}, *rows[3:]]
    config = file_config(SUFFIXES[suffix](tmp_path / f"mine{suffix}", rows), missing_text=missing_text)
    with caplog.at_level(logging.WARNING, "newllm"):
        assert load_conversations(config, 10) == kept
    assert f"mine{suffix}: left out {counts} without text, of 8 conversations read" in caplog.text


@pytest.mark.parametrize("row", GAPS)
def test_what_has_no_text_is_refused_unless_asked_otherwise(row: dict[str, Any], tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "mine.jsonl", [conversation("Tea?"), row])
    remedy = "missing_text='skip-message' or 'skip-conversation' leaves it out$"
    with pytest.raises(DataError, match=rf"mine\.jsonl, line 2[:,] .*expected .*, found .*; {remedy}"):
        load_conversations(file_config(path), 2)


def test_what_is_left_out_belongs_to_the_name_of_the_corpus(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "mine.jsonl", ROWS)
    plain, skipping = (open_corpus(file_config(path, missing_text=way)) for way in ("refuse", "skip-message"))
    assert skipping.key == f"{plain.key}-skip-message" and skipping.source == plain.source


# --- where the file is


def test_relative_file_is_found_in_the_working_directory_and_in_the_projects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, project, home = (tmp_path / name for name in ("here", "project", "home"))
    for folder in (here, project, home):
        folder.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(places, "PROJECT_ROOT", project)
    monkeypatch.setenv("HOME", str(home))
    with pytest.raises(
        DataError, match=rf"mine.jsonl: there is no such file .*, neither in .*, {here}, nor in .*, {project}$"
    ):
        open_corpus(file_config(Path("mine.jsonl")))
    write_jsonl(project / "mine.jsonl", ROWS[:2])
    assert load_conversations(file_config(Path("mine.jsonl")), 9) == TEXTS[:2]
    write_jsonl(here / "mine.jsonl", ROWS[:2])
    assert load_conversations(file_config(Path("mine.jsonl")), 9) == TEXTS[:2]
    write_jsonl(here / "mine.jsonl", ROWS[:3])
    with pytest.raises(DataError, match="mine.jsonl differ; give the whole path of one"):
        open_corpus(file_config(Path("mine.jsonl")))
    write_jsonl(home / "mine.jsonl", ROWS[:4])
    assert load_conversations(file_config(Path("~/mine.jsonl")), 9) == TEXTS[:4]


# --- what cannot be read

GOOD = b'{"messages": [{"role": "user", "content": "Hi"}]}\n'
LIST = "expected `messages` to be a list of"
CONTENT = "expected an object with content or value"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{\n", "expected a JSON object, found something else .*`jq -c . FILE > NEW-FILE` writes one a line"),
        (b"[" * 100_000 + b"\n", "expected a JSON object, found something else"),
        (b"[]\n", r"expected an object, found a list; `jq -c '.\[\]' FILE > NEW-FILE` writes one object a line"),
        (b'"text"\n', "expected an object with messages or conversations, found str"),
        (b'{"text": "Hi"}\n', r"expected an object with messages or conversations, found the keys \['text'\]"),
        (b'{"messages": []}\n', rf"{LIST} at least one message, found \[\]"),
        (b'{"messages": "Hi"}\n', f"{LIST} messages, found 'Hi'"),
        (b'{"messages": "[Hi"}\n', rf"{LIST} messages, found '\[Hi'"),
        (b'{"conversations": 3}\n', "expected `conversations` to be a list of messages, found 3"),
        (b'{"messages": [{"role": "user"}]}\n', f"message 1: {CONTENT}"),
        (b'{"messages": ["Hi"]}\n', f"message 1: {CONTENT}, found 'Hi'"),
        (b'{"messages": [{"content": ""}]}\n', "message 1: expected `content` to be text that is not empty, found ''"),
        (b'{"messages": [{"content": 3}]}\n', "message 1: expected `content` to be text that is not empty, found 3"),
        (b'{"messages": [{"content": "\\ud800"}]}\n', "expected text that UTF-8 can hold, found half a character"),
        (b'{"messages": [{"content": "\xe9"}]}\n', "expected UTF-8, found byte 0xe9; `iconv -f ITS-ENCODING"),
        (b"\xff\xfe{\x00", "expected UTF-8, found byte 0xff; `iconv -f UTF-16 -t UTF-8 FILE > NEW-FILE`"),
        (b'{"messages": [' + b" " * MAX_CONVERSATION_BYTES, "expected text of at most 8 MiB, found more"),
        (b'{"x": ' + b"9" * 5000 + b"}\n", "expected a JSON object, found something else .*4300 digits"),
    ],
)
def test_bad_line_is_named(line: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(GOOD + line)
    with pytest.raises(DataError, match=rf"mine\.jsonl, line 2[:,] {message}"):
        load_conversations(file_config(path), 10)


def test_blank_lines_count_where_a_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(GOOD + b"\n\n" + b"{")
    with pytest.raises(DataError, match="line 4: expected a JSON object"):
        load_conversations(file_config(path), 10)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.jsonl", None, "there is no such file or folder$"),
        ("empty.jsonl", b"", "the file is empty"),
        ("empty.parquet", b"", "the file is empty"),
        ("mine.csv", b"a,b", "expected a file that ends in .jsonl .* or .parquet, unpacked, given '.csv'"),
        ("mine.jsonl.gz", b"a,b", "expected a file that ends in .* unpacked, given '.gz'"),
        ("mine.parquet", GOOD, "expected a Parquet file, found something else"),
    ],
)
def test_unusable_file_is_named(name: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: {message}"):
        load_conversations(file_config(tmp_path / name), 10)


def test_folder_is_no_conversations_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a file, found a folder"):
        load_conversations(file_config(tmp_path), 10)
    with pytest.raises(DataError, match="expected a file, found a device or pipe"):
        load_conversations(file_config(Path("/dev/null")), 10)


@pytest.mark.parametrize("name", ["x" * 5000, "~nobody-of-this-name/mine.jsonl"])
def test_what_can_be_no_path_is_refused(name: str) -> None:
    with pytest.raises(DataError, match="this cannot be the path of a file or folder"):
        open_corpus(file_config(Path(name)))


def test_bad_parquet_content_is_named(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = write_parquet(tmp_path / "mine.parquet", [{"text": "Hi"}])
    with pytest.raises(DataError, match=r"expected a column messages or conversations, found the columns \['text'\]"):
        load_conversations(file_config(path), 10)
    write_parquet(path, [conversation("Hi"), conversation("")])
    with pytest.raises(DataError, match="row 2, message 1: expected `content` to be text that is not empty"):
        load_conversations(file_config(path), 10)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([conversation("Hi")]).slice(0, 0), path)
    with pytest.raises(DataError, match="the file is empty"):
        load_conversations(file_config(path), 10)
    # Arrow does not check text that it is told to be UTF-8.
    text = pyarrow.array([b"caf\xe9"]).cast(pyarrow.binary()).view(pyarrow.string())
    messages = pyarrow.ListArray.from_arrays([0, 1], pyarrow.StructArray.from_arrays([text], ["content"]))
    pyarrow.parquet.write_table(pyarrow.table({"messages": messages}), path)
    with pytest.raises(DataError, match="row 1: expected UTF-8, found byte 0xe9"):
        load_conversations(file_config(path), 10)


# --- hostile content

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["messages", "conversations", "content", "value", "text", "x"]), inner)
    ),
    max_leaves=8,
)
ways = st.sampled_from(["refuse", "skip-message", "skip-conversation"])


@hypothesis_settings(deadline=None, max_examples=300)
@given(json_values, ways)
def test_any_row_gives_text_or_an_error_with_its_place(row: Any, missing_text: str) -> None:
    try:
        texts = list(conversations_from_rows([("mine.jsonl, line 1", row)], "mine.jsonl", missing_text))
    except DataError as error:
        assert str(error).startswith("mine.jsonl, line 1")
    else:
        assert all(texts) and len(texts) <= 1 and (texts or missing_text != "refuse")


@hypothesis_settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from([GOOD, MARK, b"\n", b"\0", b"{", b"[", b'"', b"\xff"]) | st.binary(max_size=20)), ways)
def test_any_bytes_are_conversations_or_an_error_with_the_file(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], missing_text: str
) -> None:
    path = tmp_path_factory.mktemp("any") / "any.jsonl"
    path.write_bytes(b"".join(pieces))
    try:
        texts = load_conversations(file_config(path, missing_text=missing_text), 100)
    except DataError as error:
        assert "any.jsonl" in str(error)
    else:
        assert set(texts) <= {"Hi"}


@hypothesis_settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4))
def test_damaged_parquet_is_read_or_an_error_with_the_file(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    path = write_parquet(tmp_path_factory.mktemp("any") / "any.parquet", ROWS)
    content = bytearray(path.read_bytes())
    for place, value in changes:
        content[place % len(content)] = value
    path.write_bytes(content)
    try:
        assert all(isinstance(text, str) for text in load_conversations(file_config(path), 10))
    except DataError as error:
        assert "any.parquet" in str(error)


def test_line_of_200_megabytes_is_refused_within_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    with path.open("wb") as file:
        file.write(GOOD + b'{"messages": [{"content": "')
        file.writelines(b"words " * 1_000_000 for _ in range(33))
    code = (
        "import resource, sys; from pathlib import Path; from newllm_core.data.rows import read_rows\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: list(read_rows(Path(sys.argv[1])))\n"
        "except RuntimeError as error: print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000)"
    )
    result = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, timeout=120, check=True)
    assert "long.jsonl, line 2: expected text of at most 8 MiB, found more" in result.stdout
    assert result.stdout.endswith("True\n")


# --- identity


def test_file_corpus_is_named_by_its_content(tmp_path: Path) -> None:
    one = open_corpus(file_config(write_jsonl(tmp_path / "one.jsonl", numbered_rows(3))))
    same = open_corpus(file_config(write_jsonl(tmp_path / "same.jsonl", numbered_rows(3))))
    other = open_corpus(file_config(write_jsonl(tmp_path / "other.jsonl", numbered_rows(4))))
    assert one.key == same.key == f"file-{one.source[:8]}"
    assert other.key != one.key
