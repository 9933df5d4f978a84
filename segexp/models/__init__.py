"""Architectures, building networks, and tracing, swapping and auditing hidden activations."""
