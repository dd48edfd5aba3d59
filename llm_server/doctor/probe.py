"""`python -m llm_server.doctor.probe [sandbox]`: what llama.cpp says of itself, as JSON on stdout.

A process of its own, because a broken build may take its process with it; on request in the sandbox
of workers, which may hide cards.
"""

from __future__ import annotations

import json
import sys

from llm_server.doctor.build import installed_backends
from llm_server.worker import sandbox

if __name__ == "__main__":
    if "sandbox" in sys.argv:
        sandbox.enter()
        sandbox.confine(readable=(), writable=(), gpu=True)

    from llm_server.llama.lib import lib, version

    print(
        json.dumps(
            {
                "version": version(),
                "system_info": lib.llama_print_system_info().decode(errors="replace"),
                "gpu": bool(lib.llama_supports_gpu_offload()),
                "backends": sorted(installed_backends()),
            }
        )
    )
