"""How Ray Serve is set up for this server, where nobody has said otherwise.

Variables that Ray reads when it is imported: every node of a cluster should have them. Answers come
without them too, each one some milliseconds later.
"""

import os

IDS = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"

ENVIRONMENT = {
    # Nobody is told that this server was started.
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ids of requests are the server's, and told once.
    IDS: "llm_server.cluster.proxy:middlewares",
    # Between ingress and replica: half the time of Ray's own calls for a stream of small messages.
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    # Neither our code nor Ray's blocks the loop, and handing over to a thread costs a token more.
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
}


def ids_given() -> bool:
    """Whether Ray Serve's proxies are set up, as far as this process knows, to choose ids."""
    return os.environ.get(IDS) == ENVIRONMENT[IDS]


def apply() -> None:
    """Set what is not set, for this process and those that it starts. Before Ray is imported."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
