#!/usr/bin/env bash
# Does arctan beat the sigmoid under the Dice loss? The claim of Nieradzik et al. 2021 (arXiv:2109.00903), as the shortest
# comparison that is fair: two arms, five seeds each, paired (same weights, batches and split), on the embedded data set.
#
#   scripts/paper_claims.sh [OUTPUTS] [override ...]     about 12 minutes on two CPU cores; run again, it continues
#
# Both arms have the default learning rate, tuned for neither. Ten runs on one synthetic data set are no proof for yours.
set -euo pipefail

outputs=outputs
if [[ $# -gt 0 && $1 != *=* && $1 != -* ]]; then
    outputs=$1
    shift
fi
study=paper_claims
segexp train -m activation=sigmoid,arctan loss=dice 'seed=range(5)' "outputs=$outputs" "study.name=$study" "$@"

python - "$outputs/$study" <<'PYTHON'
import sys
from pathlib import Path

import pandas as pd
from scipy import stats

from segexp.records import read_table

# Of runs made with other overrides before, the folder keeps the tables: the last of an arm and seed counts.
paths = sorted(Path(sys.argv[1]).glob("*/summary.csv"), key=lambda p: p.stat().st_mtime)
runs = pd.concat([read_table(p, "summary") for p in paths if ".old" not in p.parent.name])
runs = runs.drop_duplicates(["activation", "seed"], keep="last")
dice = runs.pivot(index="seed", columns="activation", values="dice")
starts = runs.groupby("seed")[["init_sha", "order_sha", "split_sha", "epochs"]].nunique()
if (starts != 1).any(axis=None):
    sys.exit(f"{sys.argv[1]} mixes runs of several settings, whose arms did not start alike: give another OUTPUTS folder")
difference = (dice["arctan"] - dice["sigmoid"]).dropna()
dice["difference"] = difference
print("\ntest Dice")
print(dice.round(4).to_string())
mean, n = difference.mean(), len(difference)
low, high = stats.t.interval(0.95, n - 1, loc=mean, scale=stats.sem(difference))
print(f"\narctan - sigmoid: {100 * mean:+.2f} points, 95 % interval over seeds [{100 * low:+.2f}, {100 * high:+.2f}], n = {n}")
print("(t interval over seeds: of this data set and split, at this learning rate, and of nothing else)")
PYTHON
