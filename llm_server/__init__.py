"""A local, OpenAI-compatible server for GGUF models.

Importing the package loads nothing heavy: `server` starts it, `docs/architecture.md` explains it.
"""

__version__ = "0.1.0"
