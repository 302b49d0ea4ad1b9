#!/usr/bin/env bash
# datasets 5.2.0: a local file that was replaced is answered with the old rows when its modification time is the same.
#
# `load_dataset` keeps what it has converted under a name made of the path and the modification time of each file.
# Neither size nor content is part of it. Times are equal more often than one thinks: `cp -p`, `rsync -t` and `tar`
# keep them, reproducible archives and images set them all to one date, and some file systems count in whole seconds.
# A corrected or longer file at the same path is then silently read as the old one, in another process too.
#
# Seen with datasets 5.2.0 and pyarrow 26.0.1 on Python 3.11 (November 2026):
#     3 rows of 'first' as written
#     3 rows of 'first' after the file was replaced by one of 9 other rows
#     9 rows of 'second' once its time is one second later
# Expected in the second line: 9 rows of 'second'. Way around: a cache folder of one's own for each content
# (`cache_dir=` named by the file's SHA-256), or the file's hash compared before a cached table is trusted.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check datasets==5.2.0 pyarrow==26.0.1
export HF_HOME="$folder/cache" HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1
cd "$folder"

write() { # text, number of rows, modification time
    "$folder/venv/bin/python" - "$@" <<'PYTHON'
import os
import sys

import pyarrow
import pyarrow.parquet

text, rows, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
pyarrow.parquet.write_table(pyarrow.table({"text": [f"{text} {row}" for row in range(rows)]}), "talks.parquet")
os.utime("talks.parquet", (seconds, seconds))
PYTHON
}

rows() {
    "$folder/venv/bin/python" - <<'PYTHON'
from datasets import load_dataset

texts = load_dataset("parquet", data_files="talks.parquet", split="train")["text"]
print(f"{len(texts)} rows of {texts[0].split()[0]!r}")
PYTHON
}

expect() { # what is seen, what was seen in November 2026
    echo "$1"
    [ "$1" = "$2" ] || { echo "changed: expected $2" >&2; exit 1; }
}

write first 3 1700000000
expect "$(rows)" "3 rows of 'first'"
write second 9 1700000000
expect "$(rows)" "3 rows of 'first'"
write second 9 1700000001
expect "$(rows)" "9 rows of 'second'"
echo "as found: the replaced file was read as the old one"
