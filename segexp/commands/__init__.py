"""The commands of `segexp`, one per file: each takes its words and returns an exit code."""
