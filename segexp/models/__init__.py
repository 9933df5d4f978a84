"""Architectures, building networks, and swapping hidden activations."""
