"""The real server on fake workers, as a process: `python tests/serve_fake.py [OPTIONS]`."""

import sys
from pathlib import Path

from llm_server.config import settings_from_args
from llm_server.server import CannotStart, serve

FAKE_WORKER = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))

if __name__ == "__main__":
    try:
        sys.exit(serve(settings_from_args(sys.argv[1:], "serve_fake"), worker_argv=FAKE_WORKER))
    except CannotStart as error:
        sys.exit(str(error))
