"""The prompt cache: what was computed once, by live KV cells and by files on disk.

The engine sees `prefix` alone.
"""
