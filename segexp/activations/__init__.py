"""Output activations as log-odds functions, hidden activations as module factories, and the head."""
