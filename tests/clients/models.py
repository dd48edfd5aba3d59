"""The models folder of the clients' tests: `python -m tests.clients.models FOLDER`, run by the
server's interpreter, because those of the clients have neither the server nor what builds models.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from llm_server.demo import demo_model_path


def main() -> None:
    """Put the demo model into the folder."""
    shutil.copy(demo_model_path(), Path(sys.argv[1]) / "demo.gguf")


if __name__ == "__main__":
    main()
