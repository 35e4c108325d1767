"""``lowfirst deploy``."""

from __future__ import annotations

from typing import Annotated

import typer

from service.cli.console import say
from service.errors import DeploymentFailed
from service.settings import load_settings


def deploy(
    address: Annotated[
        str,
        typer.Option(
            help="Running Ray cluster: host:port, ray://host:port, or auto for one on this machine.",
            envvar="RAY_ADDRESS",
        ),
    ] = "auto",
    replicas: Annotated[int | None, typer.Option(help="Number of replicas. [default: 1]")] = None,
    min_replicas: Annotated[int | None, typer.Option(help="Autoscaling: fewest replicas. [default: 1]")] = None,
    max_replicas: Annotated[int | None, typer.Option(help="Autoscaling: most replicas, depending on load.")] = None,
    cpus_per_replica: Annotated[float | None, typer.Option(help="Cores per replica. [default: 1]")] = None,
    gpus_per_replica: Annotated[
        float | None, typer.Option(help="GPUs per replica; with 0.5 two replicas share one. [default: 0]")
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the Ray Serve application.")] = "lowfirst",
    route_prefix: Annotated[str, typer.Option(help="URL path of the application.")] = "/",
    host: Annotated[
        str | None, typer.Option(help="Address on which Serve's proxies listen. [default: LOWFIRST_HOST or 127.0.0.1]")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port of Serve's proxies. [default: LOWFIRST_PORT or 8000]")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds that the replicas may take to start.")] = 300.0,
    cluster_grows: Annotated[
        bool,
        typer.Option("--cluster-grows", help="Allow more replicas than currently fit; Ray's autoscaler adds nodes."),
    ] = False,
) -> None:
    """Serve on a Ray cluster, one replica per device. Settings: LOWFIRST_*, see docs/settings.md."""
    try:
        from service.cluster.deploy import deploy as bring_up
        from service.cluster.options import read_options
    except ImportError as error:
        takes = "`lowfirst deploy` needs Ray: pip install '.[ray]'"
        raise DeploymentFailed(takes) from error
    wanted = {
        "replicas": replicas,
        "min_replicas": min_replicas,
        "max_replicas": max_replicas,
        "cpus_per_replica": cpus_per_replica,
        "gpus_per_replica": gpus_per_replica,
    }
    listen = {key: value for key, value in {"host": host, "port": port}.items() if value is not None}
    settings = load_settings(listen)
    bring_up(
        read_options({key: value for key, value in wanted.items() if value is not None}),
        address=address,
        name=name,
        route_prefix=route_prefix,
        host=settings.host,
        port=settings.port,
        seconds=timeout,
        grows=cluster_grows,
    )
    say(f"{name} is up at {route_prefix}")
    say(f"next: curl http://{settings.host}:{settings.port}{route_prefix.rstrip('/')}/health/ready")
