#!/usr/bin/env bash
# optuna 5.0.0, PedAnovaImportanceEvaluator: a choice of two that carries 97 % of the variance gets a fifth of the
# importance of a number that carries 3 %, and no more than numbers that do nothing.
#
# PED-ANOVA compares where the best tenth of the trials lies with where all lie. Half of all trials have the better of two
# values already, so that all of the best tenth having it can do no more than double a density; a number whose best tenth
# lies together is held against a tenth of its range. Beyond the choice, which all of the best have made, it is the number
# that tells the best from the good. Functional ANOVA, of the same library and on the same trials, finds the shares.
#
# Seen with optuna 5.0.0 and scikit-learn 1.9.1 on Python 3.11 (November 2026), means over ten random studies of 40 trials,
# value = 0.1 [stem = tiny] + 0.03 slope + noise of 0.005:
#     PED-ANOVA       stem 0.11, slope 0.58, idle at most 0.10
#     PED-ANOVA, half stem 0.50, slope 0.17, idle at most 0.10
#     fANOVA          stem 0.97, slope 0.02, idle at most 0.00
# Expected: stem first. Way around: fANOVA; or PED-ANOVA with a quantile of a half.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check optuna==5.0.0 scikit-learn==1.9.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator, get_param_importances

optuna.logging.set_verbosity(optuna.logging.ERROR)
share = FloatDistribution(0, 1)
idle = {"depth": IntDistribution(2, 4), "width": IntDistribution(48, 96, step=8), "a": share, "b": share, "c": share}
space = {"stem": CategoricalDistribution(("off", "tiny")), "slope": share, **idle}


def study(seed: int) -> optuna.Study:
    noise = np.random.default_rng(seed)
    made = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=seed))
    for _ in range(40):
        trial = made.ask(space)
        stem = trial.params["stem"] == "tiny"
        made.tell(trial, 0.1 * stem + 0.03 * trial.params["slope"] + 0.005 * noise.standard_normal())
    return made


studies = [study(seed) for seed in range(10)]
found = {}
for name, evaluator in {
    "PED-ANOVA": PedAnovaImportanceEvaluator(),
    "PED-ANOVA, half": PedAnovaImportanceEvaluator(target_quantile=0.5),
    "fANOVA": FanovaImportanceEvaluator(seed=0),
}.items():
    each = [get_param_importances(one, evaluator=evaluator) for one in studies]
    mean = {parameter: float(np.mean([one[parameter] for one in each])) for parameter in space}
    found[name], most = mean, max(mean[parameter] for parameter in idle)
    print(f"{name:15} stem {mean['stem']:.2f}, slope {mean['slope']:.2f}, idle at most {most:.2f}")
if not (found["PED-ANOVA"]["stem"] < found["PED-ANOVA"]["slope"] / 2 and found["fANOVA"]["stem"] > 0.9):
    raise SystemExit("changed: PED-ANOVA ranks the choice that decides near the first place")
print("as found: the choice that decides stands far below a number that hardly matters")
PYTHON
