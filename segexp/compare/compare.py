"""From runs to a verdict: `compare` reads, arranges, compares and says what may be said.

The statistics stand in paired.py, power.py and across.py; here is decided what is compared with what, what a comparison
may claim, and which warnings go with it.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from segexp.compare.arms import Arms, Ground, Group, arrange, reference_levels, where_these
from segexp.compare.crossed import factorials_of
from segexp.compare.datasets import over_datasets_of, ranks_of
from segexp.compare.headline import headline
from segexp.compare.load import Loaded, Run, load
from segexp.compare.pairs import Pair, compared, pairs_of, with_holm
from segexp.compare.provenance import provenance_of
from segexp.compare.result import ArmScore, Block, Metric, Result, Unscored
from segexp.compare.values import metric_of, summary_value, values_of
from segexp.compare.warn import warnings_of_block, warnings_of_runs
from segexp.errors import UsageError
from segexp.metrics.scores import EmptyPolicy
