"""A Ray cluster of two nodes on this machine: replicas come, go and die under load, and what they share stays."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
import yaml

from loadtest.servers import free_port
from service.cluster.options import Options
from service.errors import InvalidOption
from tests.conftest import own_redis
from tests.e2e import under_load
from tests.e2e.prometheus import DOCKER, panel_queries, scraping, wait_until_none_is_left
from tests.e2e.under_load import RAW, posting

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore:The `metrics_interval_s` field:DeprecationWarning"),
]

ADMIN = {"X-API-Key": "admin-key-0123456789"}
EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.jpg"))
TIMEOUT = 120  # a machine may be busy, and each process of a replica loads PyTorch
until = partial(under_load.until, timeout=TIMEOUT)
CLIENTS = 4
MAX_IN_FLIGHT = 8
EACH_TELLS = (
    "lowfirst_images_total",
    "lowfirst_multiply_adds_total",
    "lowfirst_request_seconds_count",
    "lowfirst_queue_wait_seconds_count",
)
HITS = 'lowfirst_cache_requests_total{result="hit"'

RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_worker_niceness": "0",  # else whatever else runs here goes before them
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.2",
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.2",
}


class Fleet:
    """Two nodes of one core each, a Redis, and what is deployed on them.

    Attributes:
        cluster: its head has the one proxy, so that the other node can be lost without it.
        environment: of commands.
    """

    def __init__(self, cluster: Any, environment: dict[str, str], port: int) -> None:
        self.cluster = cluster
        self.environment = environment
        self.port = port
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=TIMEOUT)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A command of the environment's own, to its end."""
        return subprocess.run(
            [sys.executable, "-m", *command], env=self.environment, capture_output=True, text=True, timeout=TIMEOUT
        )

    def deploy(self, *options: str) -> subprocess.CompletedProcess[str]:
        """``lowfirst deploy``."""
        return self.run("service.cli", "deploy", "--address", self.cluster.address, *options)

    def is_ready(self, address: str = "") -> bool:
        """Whether a replica is at ``address``, or any through the proxy, and answers."""
        try:
            return self.client.get(f"{address and 'http://'}{address}/health/ready").status_code == 200
        except httpx.TransportError:
            return False

    def replicas(self) -> dict[str, str]:
        """Each listed replica's own address, by its name."""
        listed = self.client.get("/metrics/targets")
        if listed.status_code != 200:
            return {}
        return {each["labels"]["replica"]: each["targets"][0] for each in listed.json()}

    def counted(self, name: str) -> list[float]:
        """A metric of each listed replica that answers: the sum of the samples that begin so."""
        sums = []
        for address in filter(self.is_ready, self.replicas().values()):
            lines = self.client.get(f"http://{address}/metrics").text.splitlines()
            sums.append(sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)))
        return sums

    def until_each_answers(self, replicas: int = 2) -> None:
        """Until so many replicas have each answered some images more than now."""
        before = self.counted("lowfirst_images_total")
        assert len(before) == replicas

        def have_answered() -> bool:
            now = self.counted("lowfirst_images_total")
            return len(now) == replicas and all(new > old + 3 for new, old in zip(now, before, strict=True))

        until(have_answered)

    def until_replicas_are(self, number: int, without: str = "") -> dict[str, str]:
        """Until so many that are listed answer, none of them named ``without``; a dead one is listed for a while."""
        up: dict[str, str] = {}

        def are_up() -> bool:
            nonlocal up
            up = {name: address for name, address in self.replicas().items() if self.is_ready(address)}
            return len(up) == number and without not in up

        until(are_up)
        return up


@pytest.fixture(scope="module")
def fleet(environment: dict[str, str], two_versions: Path) -> Iterator[Fleet]:
    """Nothing is deployed on it yet."""
    settings = {
        "MODEL_STORE": str(two_versions),
        "MODEL": "tiny/1",
        "ADMIN_KEY": ADMIN["X-API-Key"],
        "CACHE_TTL_SECONDS": "600",
        "COST_PER_HOUR": "0.9",
        "AUDIT_PROBABILITY": "1",
        "MAX_IMAGES_IN_FLIGHT": str(MAX_IN_FLIGHT),
        "DRAIN_DELAY_SECONDS": "0.2",
    }
    with own_redis() as redis, pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="ray") as temp:
        redis.start()
        shared = {
            **environment,
            **RAY,
            **{f"LOWFIRST_{name}": value for name, value in settings.items()},
            "LOWFIRST_REDIS_URL": redis.url,
            "PYTHONPATH": os.pathsep.join([str(DOCKER.parent), os.environ.get("PYTHONPATH", "")]),
        }
        for name in ("LOWFIRST_PORT", "LOWFIRST_WORKERS"):
            del shared[name]
        for name in [*RAY, "PYTHONPATH"]:  # of the nodes' own processes
            patch.setenv(name, shared[name])
        from ray.cluster_utils import Cluster

        # Ray notes the address there, and makes the folder only where the head node's own files go there, too.
        Path(tempfile.gettempdir(), "ray").mkdir(exist_ok=True)
        port = free_port()
        head = {"num_cpus": 1, "include_dashboard": False, "temp_dir": temp}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            cluster.add_node(num_cpus=1)
            fleet = Fleet(cluster, shared, port)
            yield fleet
            fleet.client.close()
        finally:
            cluster.shutdown()


@pytest.fixture
def here(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """``lowfirst deploy --replicas N`` in this process, which has loaded PyTorch already."""
    for name, value in fleet.environment.items():
        if name.startswith("LOWFIRST_"):
            monkeypatch.setenv(name, value)
    from service.cluster.deploy import deploy

    where: dict[str, Any] = {"address": fleet.cluster.address, "host": "127.0.0.1", "port": fleet.port}
    app: dict[str, Any] = {"name": "lowfirst", "route_prefix": "/"}
    return lambda replicas: deploy(Options(replicas=replicas), **where, **app, seconds=TIMEOUT, grows=False)


def load(
    fleet: Fleet, make_jpeg: Callable[[int], bytes], clients: int = CLIENTS, pause: float = 0.02
) -> AbstractContextManager[list[int]]:
    """So many clients post photographs that no cache knows, and leave processes that start some time in between."""
    bodies = [make_jpeg(seed) for seed in range(20)]

    def body(number: int) -> bytes:
        return bodies[number % len(bodies)] + number.to_bytes(4, "big")

    return posting([fleet.client.base_url] * clients, body, pause, TIMEOUT)


def until_more(statuses: list[int], number: int = 30) -> None:
    """Until so many more are answered 200."""
    seen = statuses.count(200)
    until(lambda: statuses.count(200) >= seen + number)


def test_config_file_is_deployed_and_scales_with_the_load(
    fleet: Fleet, make_jpeg: Callable[[int], bytes], tmp_path: Path
) -> None:
    config = yaml.safe_load((DOCKER / "ray/serve.yaml").read_text())
    config["proxy_location"] = "HeadOnly"
    config["http_options"] |= {"host": "127.0.0.1", "port": fleet.port}
    (application,) = config["applications"]
    settings = {name: value for name, value in fleet.environment.items() if name.startswith("LOWFIRST_")}
    application["runtime_env"]["env_vars"] |= settings
    soon = {"upscale_delay_s": 0, "downscale_delay_s": 0.5, "look_back_period_s": 1, "target_ongoing_requests": 0.5}
    scale = {"min_replicas": 1, "max_replicas": 2, "metrics_interval_s": 0.2, **soon}
    application["deployments"][0]["autoscaling_config"] |= scale
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump(config))
    done = fleet.run("ray.serve.scripts", "run", "--address", fleet.cluster.address, "--non-blocking", str(file))
    assert done.returncode == 0, done.stderr
    until(fleet.is_ready)
    fleet.until_replicas_are(1)
    with load(fleet, make_jpeg) as many:
        fleet.until_replicas_are(2)
        fleet.until_each_answers()
        until_more(many)
    with load(fleet, make_jpeg, clients=1, pause=0.2) as few:
        fleet.until_replicas_are(1)
        until_more(few, 5)
    assert set(many + few) == {200}


def test_deployed_anew_under_load_loses_nothing(fleet: Fleet, make_jpeg: Callable[[int], bytes]) -> None:
    with load(fleet, make_jpeg) as statuses:
        done = fleet.deploy("--replicas", "2", "--port", str(fleet.port))
        assert (done.returncode, done.stdout.splitlines()[0]) == (0, "lowfirst is up at /"), done.stderr
        fleet.until_replicas_are(2)
        fleet.until_each_answers()
        until_more(statuses)
    assert set(statuses) == {200}


def test_more_replicas_than_there_is_room_for_is_said_at_once(fleet: Fleet, here: Callable[[int], None]) -> None:
    with pytest.raises(InvalidOption, match=r"^replicas is 3; it must be at most 2: the cluster's 2 nodes"):
        here(3)
    assert len(fleet.replicas()) == 2


def test_answers_are_those_of_one_process(fleet: Fleet, serve_once: Callable[..., Any], two_versions: Path) -> None:
    _, alone = serve_once(model_store=str(two_versions), model="tiny/1")
    exits = set()
    for threshold in (0.5, 0.9):
        for example in EXAMPLES:
            post: dict[str, Any] = {"params": {"threshold": threshold}, "content": example.read_bytes(), "headers": RAW}
            one, other = (client.post("/classify", **post) for client in (alone, fleet.client))
            for name in ("label", "exit", "threshold", "model", "degraded"):
                assert one.json()[name] == other.json()[name]
            assert one.json()["confidence"] == pytest.approx(other.json()["confidence"], abs=1e-6)
            assert other.headers["X-Request-ID"] == other.json()["request_id"]
            exits.add(other.json()["exit"])
    assert exits == {"low", "high"}


def test_a_change_reaches_every_replica_within_a_second_and_only_with_the_key(
    fleet: Fleet, make_jpeg: Callable[[int], bytes]
) -> None:
    addresses = fleet.until_replicas_are(2).values()
    change = {"threshold": 0.55}
    assert fleet.client.patch("/config/threshold", json=change).status_code == 401
    version = fleet.client.patch("/config/threshold", json=change, headers=ADMIN).json()["version"]

    def told(*asked: str) -> list[list[Any]]:
        """What each replica says of it."""
        stats = [fleet.client.get(f"http://{address}/stats").json() for address in addresses]
        return [[each[name] for name in asked] for each in stats]

    assert until(lambda: told("threshold", "config_version") == [[0.55, version]] * 2) < 1
    seeds = count(500)

    def is_shared() -> bool:
        """Whether both replicas have what one of them computed; a slow Redis is passed over, and it is tried again."""
        jpeg = make_jpeg(next(seeds))
        before = fleet.counted(HITS)
        answers = [fleet.client.post("/classify", content=jpeg, headers=RAW).json() for _ in range(10)]
        assert {(each["threshold"], each["config_version"]) for each in answers} == {(0.55, version)}
        have_hit = all(new > old for new, old in zip(fleet.counted(HITS), before, strict=True))
        return have_hit and [each["cached"] for each in answers] == [False] + [True] * 9

    until(is_shared)
    switched = fleet.client.patch("/config/model", json={"model": "tiny/2"}, headers=ADMIN)
    assert switched.status_code == 200
    until(lambda: told("model") == [[{"name": "tiny", "version": 2}]] * 2)


def test_busy_reaches_the_client_as_429(fleet: Fleet, make_jpeg: Callable[[int], bytes]) -> None:
    kinds = set()
    with load(fleet, make_jpeg, clients=6 * MAX_IN_FLIGHT, pause=0) as statuses:

        def is_busy() -> bool:
            answer = fleet.client.post("/classify", content=make_jpeg(1), headers=RAW)
            if answer.status_code == 429:
                assert int(answer.headers["Retry-After"]) >= 1
                kinds.add(answer.headers["Content-Type"].partition(";")[0])
                return "busy" in answer.text
            return False

        until(is_busy)
    assert set(statuses) == {200, 429}
    assert kinds <= {"application/json", "text/plain"}  # a replica's own, and the proxy's where even more come


# Shown where a model is tried, labels are told, or the exporters of Compose run.
OF_OTHERS = re.compile("trial|comparisons|feedback|redis_|nginx_")


@pytest.mark.usefixtures("prometheus")
def test_one_prometheus_has_the_metrics_of_every_replica(
    fleet: Fleet, make_jpeg: Callable[[int], bytes], tmp_path: Path
) -> None:
    names = set(fleet.until_replicas_are(2))
    (job,) = yaml.safe_load((DOCKER / "prometheus/ray.yml").read_text())["scrape_configs"]
    (found_at,) = job["http_sd_configs"]
    path = urlsplit(found_at["url"]).path
    targets = {"http_sd_configs": [{"url": f"{fleet.client.base_url}{path}", "refresh_interval": "500ms"}]}
    with scraping("ray.yml", targets, tmp_path) as prometheus, load(fleet, make_jpeg, clients=2):
        up = 'count(up{job="lowfirst", replica=~"' + "|".join(names) + '"} == 1)'
        until(lambda: prometheus.value(up) == 2)
        for each in EACH_TELLS:
            until(lambda each=each: prometheus.value(f"count(count by (instance, replica) ({each} > 0))") == 2)  # type: ignore[misc]
        assert fleet.client.patch("/config/threshold", json={"threshold": 0.6}, headers=ADMIN).status_code == 200
        asked = {title: query for title, query in panel_queries().items() if not OF_OTHERS.search(query)}
        asked |= {rule["name"]: rule["name"] for rule in prometheus.rules() if rule["name"].endswith(":rate5m")}
        wait_until_none_is_left(lambda: [title for title, query in asked.items() if not prometheus.has_data(query)])
        rules = prometheus.rules()
    assert {rule["health"] for rule in rules} == {"ok"}
    assert [rule["name"] for rule in rules if rule.get("state") == "firing"] == []


def test_replica_killed_under_load_costs_what_it_had_and_is_replaced(
    fleet: Fleet, make_jpeg: Callable[[int], bytes]
) -> None:
    name, address = next(iter(fleet.until_replicas_are(2).items()))
    with load(fleet, make_jpeg) as statuses:
        fleet.until_each_answers()
        psutil.Process(listening_at(address)).kill()
        until_more(statuses)
        fleet.until_replicas_are(2, without=name)
        until_more(statuses)
    failed = [status for status in statuses if status != 200]
    assert len(failed) <= CLIENTS
    assert all(status >= 500 for status in failed)


def listening_at(address: str) -> int:
    """The process that does."""
    port = int(address.rpartition(":")[2])
    (pid,) = {
        each.pid
        for each in psutil.net_connections("tcp")
        if each.status == psutil.CONN_LISTEN and each.laddr.port == port
    }
    assert pid is not None
    return int(pid)


def test_node_lost_under_load_costs_what_it_had_and_another_takes_its_place(
    fleet: Fleet, make_jpeg: Callable[[int], bytes]
) -> None:
    before = fleet.until_replicas_are(2)
    (node,) = fleet.cluster.worker_nodes
    with load(fleet, make_jpeg) as statuses:
        fleet.until_each_answers()
        fleet.cluster.remove_node(node, allow_graceful=False)
        (left,) = fleet.until_replicas_are(1)
        until_more(statuses)
        fleet.cluster.add_node(num_cpus=1)
        after = fleet.until_replicas_are(2)
        until_more(statuses)
    assert before.keys() & after.keys() == {left}
    failed = [status for status in statuses if status != 200]
    assert len(failed) <= CLIENTS
    assert all(status >= 500 for status in failed)


def test_fewer_replicas_under_load_lose_nothing_and_who_stays_is_not_restarted(
    fleet: Fleet, here: Callable[[int], None], make_jpeg: Callable[[int], bytes]
) -> None:
    before = fleet.until_replicas_are(2)
    with load(fleet, make_jpeg) as statuses:
        fleet.until_each_answers()
        here(1)
        after = fleet.until_replicas_are(1)
        until_more(statuses)
    assert set(statuses) == {200}
    assert after.items() < before.items()
