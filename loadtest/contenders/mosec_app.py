"""Mosec: HTTP in Rust; a process a core, each decoding and running the batches it is given.

    python -m loadtest.contenders.mosec_app --address 127.0.0.1 --port 8000

One stage: on two cores it answered 900 images/s. With decoding as a stage of its own, in one or two processes, 630,
since every image's pixels are then copied from process to process; with three processes 690.
"""

from __future__ import annotations

import mosec

from loadtest.contenders.work import MAX_BATCH_SIZE, Answer, Job, Work

MAX_WAIT_MS = 2


class Classifier(mosec.Worker):
    """The only stage."""

    def __init__(self) -> None:
        super().__init__()
        self._work = Work(Job.from_environment())

    def deserialize(self, data: bytes) -> bytes:
        """One image: the raw body."""
        return data

    def forward(self, data: list[bytes]) -> list[Answer]:
        """One batch."""
        return self._work.answer([self._work.decode(image) for image in data])


def main() -> None:
    """Serve the job of this process."""
    server = mosec.Server()
    workers = Job.from_environment().workers
    server.append_worker(Classifier, workers, MAX_BATCH_SIZE, MAX_WAIT_MS, route="/classify")
    server.run()


if __name__ == "__main__":
    main()
