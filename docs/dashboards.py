"""Takes the pictures of Grafana's dashboards: ``python -m docs.dashboards``, in the repository's folder.

Starts what docker-compose.yml does (two replicas, nginx, Redis, their exporters, Prometheus), sends photographs for six
minutes, moves the threshold, overloads the replicas for a while, and draws the dashboards of ``docker/grafana`` over it
as the tests do (``tests/e2e/grafana``). It needs the programs that ``.ci/run`` installs.
"""

from __future__ import annotations

import io
import random
import shutil
import tempfile
import threading
import time
from pathlib import Path

import httpx
from PIL import Image
from playwright.sync_api import sync_playwright

from docs.served import served
from tests.e2e.grafana.draw import draw
from tests.e2e.programs import exporting, proxy, running
from tests.e2e.prometheus import DASHBOARDS, scraping
from tests.e2e.under_load import RAW, until

HERE = Path(__file__).parent
EXAMPLES = sorted((HERE.parent / "tests/examples").glob("*.jpg"))
SETTINGS = {
    "workers": "1", "processes": "1", "cost_per_hour": "0.04", "audit_probability": "0.2",
    "cache_ttl_seconds": "20", "target_latency_ms": "60", "max_queue_ms": "200",
}  # fmt: skip
# Seconds, clients at a time, the longest pause of each between two photographs; what the threshold becomes before.
PHASES = [(90, 2, 0.1, 0.7), (80, 3, 0.1, 0.8), (30, 128, 0.0, None), (100, 2, 0.1, None), (60, 2, 0.1, 0.6)]


def photographs() -> list[bytes]:
    """Crops of the examples, so that the result cache does not know most of what comes."""
    draw_ = random.Random(0)
    found = []
    for _ in range(400):
        with Image.open(draw_.choice(EXAMPLES)) as picture:
            side = min(picture.size) * draw_.uniform(0.5, 1)
            left, top = (draw_.uniform(0, length - side) for length in picture.size)
            file = io.BytesIO()
            picture.crop((int(left), int(top), int(left + side), int(top + side))).save(file, "JPEG", quality=90)
            found.append(file.getvalue())
    return found


def load(url: httpx.URL, images: list[bytes], seconds: float, clients: int, pause: float) -> None:
    """Send photographs from so many clients at once; one in a hundred has a deadline that nothing could meet."""
    end = time.monotonic() + seconds

    def post(seed: int) -> None:
        draw_ = random.Random(f"{seed} {end}")
        with httpx.Client(base_url=url, timeout=30) as client:
            while time.monotonic() < end:
                query = {"deadline_ms": "0.1"} if draw_.random() < 0.01 else {}
                image = images[int(len(images) * draw_.random() ** 2)]
                client.post("/classify", params=query, content=image, headers=RAW)
                time.sleep(draw_.uniform(0, pause))

    threads = [threading.Thread(target=post, args=(seed,)) for seed in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main(folder: Path) -> None:
    """Run it all, and write a picture of each dashboard beside this file, in 256 colours."""
    socket = folder / "redis.sock"
    redis_command = ["redis-server", "--port", "0", "--unixsocket", str(socket), "--save", "", "--maxmemory", "256mb"]
    images = photographs()
    with running(redis_command):
        until(socket.exists)
        with (
            served(redis_url=f"unix://{socket}", **SETTINGS) as one,
            served(redis_url=f"unix://{socket}", **SETTINGS) as other,
            proxy(folder, [one, other]) as (client, status),
            exporting(f"unix://{socket}", status) as others,
            scraping("prometheus.yml", {"static_configs": [{"targets": [one, other]}]}, folder, others) as prometheus,
        ):
            client.patch("/config/threshold", json={"threshold": 0.7, "floor": 0.4}).raise_for_status()
            for seconds, clients, pause, threshold in PHASES:
                if threshold is not None:
                    client.patch("/config/threshold", json={"threshold": threshold}).raise_for_status()
                load(client.base_url, images, seconds, clients, pause)
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
                page = browser.new_page(viewport={"width": 1424, "height": 900})
                for dashboard in DASHBOARDS:
                    draw(page, dashboard, prometheus, prometheus.began, time.time())
                    picture = HERE / f"dashboard-{dashboard.stem}.png"
                    page.locator("main").screenshot(path=picture)
                    shrink(picture)
                browser.close()


def shrink(picture: Path) -> None:
    """To three quarters of its size and 256 colours, small areas' too: a third of the bytes."""
    with Image.open(picture) as image:
        smaller = image.convert("RGB").resize((image.width * 3 // 4, image.height * 3 // 4), Image.Resampling.LANCZOS)
        smaller.quantize(256, Image.Quantize.MAXCOVERAGE).save(picture, optimize=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="lowfirst-") as temporary:  # a socket's path must be short
        Path(temporary).chmod(0o755)  # nginx's workers are nobody where root runs this
        main(Path(temporary))
