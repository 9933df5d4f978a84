"""Output activations, hidden activations and the head."""
