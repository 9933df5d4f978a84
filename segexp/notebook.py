"""Studies in a notebook: tidy pandas frames, and a comparison that displays itself. Imports no torch."""
