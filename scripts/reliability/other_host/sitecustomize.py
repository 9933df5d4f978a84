"""A process of another host, whose clock jumps; Python reads this where its folder is on PYTHONPATH."""

import os
import time

HEARTBEAT_S, STALE_S, JUMPS_EVERY_S = 0.5, 5.0, 3.0

if name := os.environ.get("RELIABILITY_HOST"):
    from segexp.records import owned, process

    owned.host = process.host = lambda: name  # type: ignore[assignment, attr-defined]
    process.HEARTBEAT_SECONDS, process.STALE_SECONDS = HEARTBEAT_S, STALE_S
    right, begun = time.time, time.monotonic()

    def jumping() -> float:
        """Wrong by up to three days, another amount every few seconds."""
        days = hash((name, int((time.monotonic() - begun) / JUMPS_EVERY_S))) % 7 - 3
        return right() + days * 86400

    time.time = jumping

    from reliability.guards import break_named

    break_named()
