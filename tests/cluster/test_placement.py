"""What a replica asks of a node."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_server.cluster.placement import placement
from llm_server.config_file import ReplicaFields
from llm_server.demo import demo_model_path
from llm_server.gguf.header import read_header
from llm_server.models.facts import facts_of
from llm_server.models.memory import Memory
from llm_server.models.plan import Plan
from llm_server.models.registry import ModelFile
from llm_server.worker.config import LoadConfig

GB = 10**9
LAYERS = (2 * GB, 2 * GB, 2 * GB, 1 * GB)


def plan(**config: object) -> Plan:
    memory = Memory(weights=6 * GB, kv=1 * GB, compute=GB // 2, prompt_cache=0, process=GB // 2)
    model = ModelFile("a.gguf", Path("a.gguf"), 6 * GB, 0, (), ())
    loaded = LoadConfig(**config)  # type: ignore[arg-type]
    facts = facts_of([read_header(demo_model_path())])
    return Plan(model, loaded, loaded, loaded, facts, memory, layer_bytes=LAYERS)


def test_without_cards_a_model_takes_all_cores_and_its_memory() -> None:
    place = placement(plan(), ReplicaFields(), cores=8, gpu_memory=None)
    assert (place.num_cpus, place.num_gpus, place.memory) == (8, 0, 8 * GB)
    assert place.n_threads == 8


def test_threads_that_were_told_are_the_processors() -> None:
    assert placement(plan(n_threads=3), ReplicaFields(), cores=8, gpu_memory=None).num_cpus == 3


@pytest.mark.parametrize(
    ("card", "cards"), [(80 * GB, 0.1), (24 * GB, 0.35), (8 * GB, 0.95), (4 * GB, 2.0)]
)
def test_a_share_of_a_card_follows_from_what_lies_on_it(card: int, cards: float) -> None:
    place = placement(plan(), ReplicaFields(), cores=8, gpu_memory=card)
    assert (place.num_cpus, place.num_gpus) == (1, cards)
    assert place.memory == GB // 2  # What stays in the machine's own memory.


def test_layers_that_stay_on_the_processor_take_nothing_of_a_card() -> None:
    place = placement(plan(n_gpu_layers=0), ReplicaFields(), cores=8, gpu_memory=80 * GB)
    assert (place.num_cpus, place.num_gpus, place.memory) == (8, 0, 8 * GB)
    some = placement(plan(n_gpu_layers=2), ReplicaFields(), cores=8, gpu_memory=10 * GB)
    assert some.num_gpus == 0.35


def test_what_is_told_wins() -> None:
    told = ReplicaFields(num_cpus=2.5, num_gpus=1, memory="3GB", resources={"big": 1})
    place = placement(plan(), told, cores=8, gpu_memory=80 * GB)
    assert (place.num_cpus, place.num_gpus, place.memory) == (2.5, 1, 3 * GB)
    assert place.resources == {"big": 1}
    assert place.n_threads == 2
