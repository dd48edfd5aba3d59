"""`python -m llm_server.doctor.probe`: what llama.cpp says of itself, as JSON on stdout.

A process of its own, because a broken build may take its process with it.
"""

from __future__ import annotations

import json

if __name__ == "__main__":
    from llm_server.llama.lib import lib, version

    print(
        json.dumps(
            {
                "version": version(),
                "system_info": lib.llama_print_system_info().decode(errors="replace"),
                "gpu": bool(lib.llama_supports_gpu_offload()),
            }
        )
    )
