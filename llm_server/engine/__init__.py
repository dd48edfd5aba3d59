"""Continuous batching: sequences in, events out. `engine.step` is the heart of the server."""
