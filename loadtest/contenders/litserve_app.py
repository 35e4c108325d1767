"""LitServe: a process a core, each decoding and running its own batches; as many processes for HTTP, its default.

    python -m loadtest.contenders.litserve_app

Three workers on two cores, one process for HTTP and other batch time-outs (0, 10 ms) were within 10 % of this, and a
time-out of 10 ms added 8 ms to an image that came alone.
"""

# No deferred annotations here: LitServe hands the annotation of ``decode_request`` to FastAPI as it stands.

from typing import Annotated

import litserve
from fastapi import Body

from loadtest.contenders.work import MAX_BATCH_SIZE, Answer, Job, Sizes, Work

BATCH_TIMEOUT_SECONDS = 0.002


class Classifier(litserve.LitAPI):
    """The way of one request as LitServe has it: decode, batch, predict, unbatch, encode."""

    def setup(self, device: str) -> None:  # noqa: ARG002
        """Once in each worker process."""
        self._work = Work(Job.from_environment())

    def decode_request(self, request: Annotated[bytes, Body()]) -> Sizes:
        """One image, in the worker process: the raw body."""
        return self._work.decode(request)

    def batch(self, inputs: list[Sizes]) -> list[Sizes]:
        """``Work`` stacks them."""
        return inputs

    def predict(self, inputs: list[Sizes]) -> list[Answer]:
        """One batch."""
        return self._work.answer(inputs)

    def unbatch(self, output: list[Answer]) -> list[Answer]:
        """One an image already."""
        return output

    def encode_response(self, output: Answer) -> Answer:
        """JSON."""
        return output


def main() -> None:
    """Serve the job of this process."""
    job = Job.from_environment()
    api = Classifier(max_batch_size=MAX_BATCH_SIZE, batch_timeout=BATCH_TIMEOUT_SECONDS, api_path="/classify")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=job.workers, fast_queue=True)
    server.run(host="127.0.0.1", port=job.port, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main()
