"""``lowfirst serve``."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import tempfile
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Annotated, Any

import typer

from service.cli.starting import bar
from service.cores import cores
from service.errors import InvalidOption, LowfirstError
from service.log import configure, logger, starting
from service.processes.share import how_many, is_on_gpu, share
from service.settings import Settings, load_settings, unknown_variables

# What the process that all others are forked from imports. None of it computes or starts a thread.
TEMPLATE = ["service.cli.child", "service.cli.template"]

MEMORY = Path("/dev/shm")  # noqa: S108  a folder of our own is made there


def serve(
    host: Annotated[
        str | None, typer.Option(help="Address to listen on. [default: LOWFIRST_HOST or 127.0.0.1]")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port, 0 for a free one. [default: LOWFIRST_PORT or 8000]")] = None,
    model: Annotated[
        str | None, typer.Option(help="Model to serve. [default: LOWFIRST_MODEL or the shipped one]")
    ] = None,
    processes: Annotated[
        str | None,
        typer.Option(help="Number of processes that serve as one server. [default: LOWFIRST_PROCESSES or auto]"),
    ] = None,
) -> None:
    """Serve a model over HTTP. All settings: environment variables LOWFIRST_*, see docs/settings.md."""
    given = {"host": host, "port": port, "model": model, "processes": processes}
    settings = load_settings({name: value for name, value in given.items() if value is not None})
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts its background jobs with it ignored
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup has it
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
    configure(settings.log_level, settings.log_format)
    for unknown, nearest in unknown_variables(os.environ).items():
        logger.warning("%s is not a setting%s", unknown, f"; the nearest is {nearest}" if nearest else "")
    count = settings.processes
    if count == "auto":
        used = min(cores(), settings.workers * settings.threads) if settings.workers else cores()
        count = how_many(used, is_on_gpu(settings.device))
    try:
        _alone(settings) if count == 1 else _together(settings, count)
    except LowfirstError as error:
        if settings.log_format == "text":
            raise  # told as every command tells it
        logger.critical(error.message)
        raise typer.Exit(1) from error


def _alone(settings: Settings) -> None:
    from service.processes.reception import bind

    listeners = asyncio.run(bind(settings.host, settings.port))  # first, because the rest takes a while
    starting.info("starting: loading PyTorch")
    from service.app import create_app
    from service.cli.draining import DrainingServer

    with bar(len(settings.models) + 1, wanted=settings.log_format == "text"):
        app = create_app(settings)
        server = DrainingServer(app, settings, app.state.parts)
        try:
            server.run(sockets=listeners)
        except SystemExit as ended:  # before it listened
            raise app.state.failure or typer.Exit(1) from ended
    if not server.started:
        raise typer.Exit(1)


def _together(settings: Settings, count: int) -> None:
    """Serve with several processes; this one loads no PyTorch."""
    files = Path(tempfile.mkdtemp(prefix="lowfirst-", dir=MEMORY if os.access(MEMORY, os.W_OK) else None))
    shared = _folder_on_disk()
    try:
        stopped_by = asyncio.run(_parent(settings, count, files, shared))
    finally:
        for folder in filter(None, (files, shared)):
            shutil.rmtree(folder, ignore_errors=True)
    if stopped_by is not None:  # end as one process alone does
        signal.signal(stopped_by, signal.SIG_DFL if stopped_by == signal.SIGTERM else signal.default_int_handler)
        signal.raise_signal(stopped_by)


def _folder_on_disk() -> Path | None:
    """For models, for which the shared memory of a container is too small; None where no disk can be written to."""
    with suppress(OSError):
        return Path(tempfile.mkdtemp(prefix="lowfirst-"))
    return None


async def _parent(settings: Settings, count: int, files: Path, shared: Path | None) -> signal.Signals | None:
    from service.processes.parent import Parent
    from service.processes.reception import MAIN, OWN, bind, hold

    listeners = {MAIN: await bind(settings.host, settings.port)}
    own_address = ""
    if settings.metrics_port is not None:
        from service.api.own_port import bind_own

        listener, own_address = bind_own(settings.metrics_host or settings.host, settings.metrics_port)
        listeners[OWN] = [listener]
    if settings.grpc_port is not None:
        try:
            grpc_holder = hold(settings.host, settings.grpc_port)
        except OSError as error:
            raise InvalidOption(
                "LOWFIRST_GRPC_PORT",
                settings.grpc_port,
                f"a free port at {settings.host} ({error.strerror})",
            ) from error
        settings = settings.model_copy(update={"grpc_port": grpc_holder.getsockname()[1]})
    starting.info("starting %d processes", count)
    # Children are forked from one process that has all imported: each further one takes some 200 to 280 MiB instead of
    # the 690 that one started by itself takes (loadtest/process_memory.py).
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(files)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # a process with threads is not to be forked
    context = get_context("forkserver")
    context.set_forkserver_preload(TEMPLATE)

    def start(index: int, words: socket.socket, handover: socket.socket) -> BaseProcess:
        own = share(settings, index, count)
        given: tuple[Any, ...] = (own, index, count, words, handover, files, shared, own_address)
        process = context.Process(target=run_child, args=given, name=f"lowfirst-{index}")
        process.start()
        words.close()
        handover.close()
        return process

    return await Parent(settings, count, start, listeners, files).run()


def run_child(*given: Any) -> None:
    """Entry point of one of several processes: see ``service.cli.child.serve_child``."""
    from service.cli.child import serve_child

    serve_child(*given)
