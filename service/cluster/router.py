"""Which replica answers a request: read by Ray Serve's proxies and its controller, so nothing else is imported here."""

# No deferred annotations here, as in the other modules that Ray Serve reads.

import random

from ray.serve.request_router import FIFOMixin, PendingRequest, RequestRouter, RunningReplica


class EveryNode(FIFOMixin, RequestRouter):
    """Of any two replicas the one with fewer requests in work ("power of two choices"), wherever they are.

    Ray Serve's own router does so among those of the proxy's node, until they are full: behind one proxy the other
    nodes would wait for a load that the first one refuses.
    """

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,  # noqa: ARG002
    ) -> list[list[RunningReplica]]:
        """One group of at most two, of which Ray Serve takes the one with fewer."""
        return [random.sample(candidate_replicas, min(2, len(candidate_replicas)))]
