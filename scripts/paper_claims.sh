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

segexp compare "$outputs/$study"
segexp compare "$outputs/$study" --claims nieradzik2021
