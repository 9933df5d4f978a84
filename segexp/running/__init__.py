"""The composition root: one `Config` -> one finished run directory.

prepare  reads and checks the data, splits them, and names the run (no torch)
execute  builds, trains, scores and records it, or continues what an earlier attempt left
"""

from segexp.running.assemble import initial_network
from segexp.running.execute import Outcome, execute
from segexp.running.prepare import Prepared, config_yaml, prepare

__all__ = ["Outcome", "Prepared", "config_yaml", "execute", "initial_network", "prepare"]
