"""Affinity as a request router of Ray Serve: chosen by what replicas know, and how busy they are.

Runs beside an ingress, in the handle of a model's deployment. Ray Serve pickles this module by
value, so it holds nothing but the class.
"""

from __future__ import annotations

from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from llm_server.cluster.affinity import Affinity


class PrefixRouter(RequestRouter):
    """The first argument of a call are the marks of its prompt (`affinity.marks_of`)."""

    def initialize_state(self, **kwargs: Any) -> None:
        """Nothing is known yet."""
        self._affinity: Affinity[str] = Affinity()

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """All replicas, each for itself in the order they are to be tried; full ones are passed."""
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        loads = {
            name: self.replica_queue_len_cache.get(replica.replica_id) or 0
            for name, replica in by_name.items()
        }
        if pending_request is None:
            return [[by_name[name]] for name in sorted(by_name, key=loads.__getitem__)]
        pending_request.routing_context.should_backoff = True
        order = self._affinity.order(pending_request.args[0], loads)
        return [[by_name[name]] for name in order]

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: object
    ) -> None:
        """Remember where it went."""
        self._affinity.note(pending_request.args[0], replica_id.unique_id)

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """Forget what it knew."""
        super().on_replica_actor_died(replica_id)
        self._affinity.forget(replica_id.unique_id)
