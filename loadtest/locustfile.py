"""Load for a deployment of your own, with images of your own: users that ramp up, stay, or come in bursts.

    locust -f loadtest/locustfile.py --host http://127.0.0.1:8000 --images DIR --shape burst --users 50 --run-time 5m

Every request posts a random image of ``--images`` (and its folders). The statistics have a line for each exit, so that
their counts give the early-exit rate and their percentiles what an escalation costs. Needs locust alone.
"""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

from locust import FastHttpUser, LoadTestShape, constant, events, task
from locust.argument_parser import LocustArgumentParser

SHAPES = ("ramp", "steady", "burst")
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"}
EXAMPLES = Path(__file__).resolve().parent.parent / "tests" / "examples"
DEFAULT_SECONDS = 60.0

# A burst: so many seconds with all users at the end of each period, before it a tenth of them.
PERIOD_SECONDS = 30.0
BURST_SECONDS = 10.0
CALM_SHARE = 0.1


@events.init_command_line_parser.add_listener
def _options(parser: LocustArgumentParser, **_: Any) -> None:
    parser.add_argument("--images", type=Path, default=EXAMPLES, env_var="LOCUST_IMAGES", help="Folder of images.")
    parser.add_argument(
        "--shape", choices=SHAPES, default="steady", env_var="LOCUST_SHAPE", help="How the number of users changes."
    )
    parser.add_argument("--api-key", env_var="LOWFIRST_API_KEY", is_secret=True, help="Key of the server, if it asks.")


@cache
def find(folder: Path) -> tuple[bytes, ...]:
    """The images in ``folder`` and below, read once. Raises FileNotFoundError if there is none."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise FileNotFoundError(f"--images is {str(folder)!r}, which holds no image")
    return tuple(path.read_bytes() for path in paths)


def users_at(shape: str, seconds: float, duration: float, users: int) -> int:
    """How many of at most ``users`` there are after ``seconds`` of ``duration``; at least 1."""
    if shape == "ramp":
        return max(1, round(users * seconds / duration))
    if shape == "burst" and seconds % PERIOD_SECONDS < PERIOD_SECONDS - BURST_SECONDS:
        return max(1, round(users * CALM_SHARE))
    return users


class Shape(LoadTestShape):
    """``--shape`` with at most ``--users``, for ``--run-time``; without it, a minute."""

    use_common_options = True

    def tick(self) -> tuple[int, float] | None:
        """(users, users started or stopped a second), asked every second; None at the end."""
        assert self.runner is not None
        options = self.runner.environment.parsed_options
        assert options is not None
        seconds, duration = self.get_run_time(), float(options.run_time or DEFAULT_SECONDS)
        if seconds >= duration:
            return None
        users = int(options.num_users or 1)
        return users_at(options.shape, seconds, duration, users), float(users)


class Client(FastHttpUser):
    """Posts one image after another, each as soon as the one before is answered."""

    wait_time = constant(0)

    def on_start(self) -> None:
        """Read the images, and make the headers."""
        assert self.environment.parsed_options is not None
        self._images = find(self.environment.parsed_options.images)
        key = self.environment.parsed_options.api_key
        self._headers = {"Content-Type": "application/octet-stream", **({"X-API-Key": key} if key else {})}

    @task
    def classify(self) -> None:
        """One image; its line in the statistics is that of its exit."""
        image = random.choice(self._images)
        with self.client.post("/classify", data=image, headers=self._headers, catch_response=True) as response:
            if response.status_code == 200:
                name = f"/classify, exit {response.json()['exit']}"
                response.request_meta = {**response.request_meta, "name": name}
