"""A person's start on a Ray Serve that runs already."""

from __future__ import annotations

import pytest

from llm_server.config import Settings
from llm_server.server import CannotStart
from tests.cluster.live import Nodes, address

pytestmark = pytest.mark.filterwarnings("default")


def test_what_is_served_again_is_where_ray_serve_listens(nodes: Nodes) -> None:
    there = ("127.0.0.1", nodes.port)
    assert address(Settings()) == there
    assert address(Settings(host="localhost", port=nodes.port)) == there
    assert address(Settings(port=0)) == there


@pytest.mark.parametrize("told", [{"port": 1}, {"host": "0.0.0.0"}])
def test_another_address_than_that_is_refused(nodes: Nodes, told: dict[str, object]) -> None:
    with pytest.raises(CannotStart, match=f"listens on 127.0.0.1 port {nodes.port}"):
        address(Settings(**told))
