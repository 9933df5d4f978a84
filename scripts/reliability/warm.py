"""What the server of processes does once, for all of them: imported there, see `reliability.injected.begin`."""

from segexp.config.compose import hydra_session

with hydra_session():
    pass
