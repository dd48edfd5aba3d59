"""The models folder of the clients' tests: `python -m tests.clients.models FOLDER`, run by the
server's interpreter, because those of the clients have neither the server nor what builds models.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from gguf import PoolingType

from llm_server.demo import demo_model_path
from tests import tiny_encoders


def main() -> None:
    """Put the demo model into the folder, a tiny embedding model and a tiny reranker."""
    folder = Path(sys.argv[1])
    shutil.copy(demo_model_path(), folder / "demo.gguf")
    tiny_encoders.build_bert(folder / "bert.gguf", PoolingType.CLS)
    tiny_encoders.build_bert(folder / "reranker.gguf", PoolingType.RANK, n_labels=1)


if __name__ == "__main__":
    main()
