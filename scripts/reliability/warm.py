"""What the server of processes does once, for all of them: imported there, see `reliability.injected.begin`."""

from segexp.config.compose import register_schemas

register_schemas()
