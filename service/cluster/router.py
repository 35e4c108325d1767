"""Chooses the replica for a request. Ray Serve's proxies and controller import this file, so it imports nothing
else."""

# No deferred annotations here, as in the other modules that Ray Serve reads.

import random

from ray.serve.request_router import FIFOMixin, PendingRequest, RequestRouter, RunningReplica


class EveryNode(FIFOMixin, RequestRouter):
    """Of two random replicas the one with fewer running requests ("power of two choices"), on any node.

    Ray Serve's own router prefers the proxy's node until it is full: behind one proxy the other nodes would get no load
    until the first one refuses it.
    """

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,  # noqa: ARG002
    ) -> list[list[RunningReplica]]:
        """One group of at most two, of which Ray Serve takes the one with fewer."""
        return [random.sample(candidate_replicas, min(2, len(candidate_replicas)))]
