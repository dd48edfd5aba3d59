"""The model that ships in the package, so that a first answer needs no download.

Knows where its file is. How it was made is in `training/`.
"""

from pathlib import Path


def demo_model_path() -> Path:
    """The GGUF file of the demo model."""
    return Path(__file__).parent / "demo.gguf"
