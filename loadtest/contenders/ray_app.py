"""Ray Serve: a replica a core, batched by ``@serve.batch``.

    RAY_SERVE_ENABLE_HA_PROXY=1 RAY_SERVE_THROUGHPUT_OPTIMIZED=1 python -m loadtest.contenders.ray_app

The two variables are its documented high-throughput mode. With HAProxy in front it answered 360 to 690 images/s on two
cores, without 170 to 200. HAProxy listens on every interface; it is asked on loopback only.
"""

# No deferred annotations here: Ray Serve reads the annotation of ``__call__``.

import asyncio
import signal

import ray
from ray import serve
from starlette.requests import Request

from loadtest.contenders.work import MAX_BATCH_SIZE, Answer, Job, Work

BATCH_WAIT_SECONDS = 0.002
MAX_ONGOING_REQUESTS = 64  # of a replica; at the default of 5 no batch would be full


class Classifier:
    """One replica."""

    def __init__(self, job: Job) -> None:
        self._work = Work(job)

    @serve.batch(max_batch_size=MAX_BATCH_SIZE, batch_wait_timeout_s=BATCH_WAIT_SECONDS)
    async def classify(self, images: list[bytes]) -> list[Answer]:
        """One batch, off the replica's event loop, so that the next one gathers meanwhile."""
        return await asyncio.to_thread(self._run, images)

    async def __call__(self, request: Request) -> Answer:
        """One image: the raw body."""
        answer: Answer = await self.classify(await request.body())
        return answer

    def _run(self, images: list[bytes]) -> list[Answer]:
        return self._work.answer([self._work.decode(image) for image in images])


def main() -> None:
    """Serve the job of this process until it is told to stop."""
    job = Job.from_environment()
    ray.init(num_cpus=job.workers, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": job.port})
    deployment = serve.deployment(
        Classifier,
        num_replicas=job.workers,
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        ray_actor_options={"num_cpus": 1},
    )
    serve.run(deployment.bind(job), route_prefix="/classify")
    signal.sigwait([signal.SIGTERM, signal.SIGINT])


if __name__ == "__main__":
    main()
