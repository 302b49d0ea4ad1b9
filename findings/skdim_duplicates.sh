#!/usr/bin/env bash
# scikit-dimension 0.5.0: a few points that stand in the data twice change intrinsic dimensions, by estimators that look
# at the same distances in opposite ways, and without an error.
#
# A nearest neighbour at distance zero has no logarithm. One would expect every estimator either to leave such points out
# or to say that it cannot go on. Instead, of 1,000 points of a 5-dimensional normal in 20 dimensions, of which 25 stand
# there twice: MLE gives exactly 0, MiND_ML exactly 1, the lowest that each can give, and TwoNN hardly moves; where half of
# all points have a twin, TwoNN gives an eighth of a dimension. Only NumPy's RuntimeWarnings tell.
#
# Contexts of a language model repeat exactly where a text repeats for longer than the model remembers, and so do images
# of sets that hold one image twice; so points that are not the first of their kind have to go before.
#
# Seen with scikit-dimension 0.5.0, numpy 2.4.6, scikit-learn 1.9.1 (November 2026):
#     all different      MLE 4.94  MiND_ML 4.94  TwoNN 4.95
#     25 of them twice   MLE 0.00  MiND_ML 1.00  TwoNN 4.80
#     250 of them twice  MLE 0.00  MiND_ML 1.00  TwoNN 0.12
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
    scikit-dimension==0.5.0 numpy==2.4.6 scikit-learn==1.9.1
cat >"$folder/twins.py" <<'PYTHON'
import warnings

import numpy as np
from skdim.id import MLE, MiND_ML, TwoNN

warnings.simplefilter("ignore")
random = np.random.default_rng(0)
points = random.normal(size=(1000, 5)) @ random.normal(size=(5, 20))
found = []
for twins in (0, 25, 250):
    data = points.copy()
    data[:twins] = data[twins : 2 * twins]
    found.append([kind().fit(data).dimension_ for kind in (MLE, MiND_ML, TwoNN)])
    print(f"{twins:4} of them twice: MLE {found[-1][0]:.2f}  MiND_ML {found[-1][1]:.2f}  TwoNN {found[-1][2]:.2f}")
different, few, many = found
as_seen = (
    all(4.5 < value < 5.5 for value in different)
    and few[:2] == [0.0, 1.0]
    and 4.5 < few[2] < 5.5
    and many[:2] == [0.0, 1.0]
    and many[2] < 0.5
)
raise SystemExit(None if as_seen else "changed")
PYTHON
"$folder/venv/bin/python" "$folder/twins.py"
