"""Connects all parts of the server. Nothing is built on import."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from pathlib import Path
from socket import gethostname
from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi_offline import FastAPIOffline
from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

import service
from service.api import error_handlers, error_responses, keys
from service.api.addresses import Addresses, check_prefix
from service.api.dependencies import Parts
from service.api.direct import Direct
from service.api.feedback import Feedback
from service.api.following import Following
from service.api.observed import Observed
from service.api.own_port import HandedPort, OwnPort
from service.api.request_context import RequestContext
from service.api.routes import (
    calibration,
    classify,
    config,
    console,
    feedback,
    inference_protocol,
    manual,
    models,
    observe,
    triton,
)
from service.api.tensors import JSON_LENGTH
from service.cores import cores
from service.engine.admission import Admission
from service.engine.engine import Engine
from service.engine.limits import Limits
from service.errors import BrokenModel, InvalidOption, LowfirstError
from service.hosting.applied import first_config
from service.hosting.guard import Guard
from service.hosting.models import Models
from service.hosting.switching import Switching
from service.hosting.trials import Counts, Exchange, Trials
from service.inference.latency import LatencyProfile, LatencyTable
from service.inference.precomputing import Precomputing, Served
from service.inference.predictor import Predictor
from service.inference.runtimes import converts
from service.log import STARTED, logger, starting
from service.metrics import Metrics
from service.processes.metrics import SharedMetrics
from service.processes.siblings import Alone, Siblings, Together
from service.samples.files import Bounds
from service.samples.log import Options, SampleLog
from service.settings import Settings
from service.state.base import ConfigStore, ResultCache, RuntimeConfig, Target
from service.state.memory import MemoryConfigStore, MemoryResultCache, MemoryTargets
from service.state.redis.cache import RedisResultCache
from service.state.redis.config import RedisConfigStore
from service.state.redis.counts import RedisCounts
from service.state.redis.link import RedisLink
from service.state.redis.targets import RedisTargets
from service.store import ModelStore

if TYPE_CHECKING:
    from service.api.rpc.port import RpcPort
    from service.api.tracing import Traces


def create_app(settings: Settings, siblings: Together | None = None) -> FastAPI:
    """The server as an ASGI application; its model is loaded here, and warmed up at start-up.

    Args:
        settings: of this process.
        siblings: the other processes of the server; None if there are none.

    Raises:
        NotFound, BrokenModel: no such model, or one that cannot be trusted or served.
        InvalidOption: a device, precision, runtime or package that this machine lacks.
        DataError: an unreadable latency profile.
        StoreUnavailable: a required Redis does not answer.
    """
    check_prefix(settings.root_path)
    allowed = keys.Keys(settings)
    observing = FastAPI(
        openapi_url=None, redirect_slashes=False, telemetry={"tracing": False, "metrics": False, "logs": False}
    )
    own_port = _own_port(observing, settings, siblings, allowed)  # first, so that a used port is found at once
    parts = observing.state.parts = build_parts(settings, siblings)
    rpc_port = _rpc_port(settings, parts, allowed)
    guard = Guard(parts.trials)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await parts.siblings.start()
        try:
            await parts.config.start()
            if parts.samples is not None:
                parts.samples.start()
            await parts.models.start()
            await parts.switching.start()
            await parts.following.start()
            await guard.start()
        except BaseException as error:
            if isinstance(error, LowfirstError):
                app.state.failure = error  # for the person who started the server
            await parts.models.close()  # a thread in a native library must not outlive the interpreter
            raise
        starting.info(STARTED)
        if parts.siblings.index == 0:  # the others would log the same
            _announce(parts)
            _warn_if_open(settings, allowed)
        async with _listed(own_port, parts), rpc_port or nullcontext():
            yield
        await guard.close()
        await parts.following.close()
        await parts.switching.close()
        await parts.models.close()
        if parts.samples is not None:
            await asyncio.to_thread(parts.samples.close)
        await parts.config.close()
        if parts.traces is not None:
            await parts.traces.close()

    app = FastAPIOffline(
        title="lowfirst",
        version=service.__version__,
        description="Image classification that spends compute only where an image needs it.",
        lifespan=lifespan,
        redirect_slashes=False,  # a redirect would name the address inside the proxy
        telemetry={"tracing": False, "metrics": False, "logs": False},  # our own lines cover this
    )
    app.state.parts = parts
    app.state.own_port = own_port
    app.state.failure = None
    app.add_middleware(Direct, routes=classify.router.routes)
    if not allowed.guard_nothing:
        app.add_middleware(keys.Guard, keys=allowed, on_error=error_handlers.own)
        keys.document(app, allowed)
    if settings.cors_origins:  # outside the guard: preflight requests come without a key
        _allow_pages_of(app, settings.cors_origins)
    if parts.traces is not None:
        parts.traces.watch(app)
    app.add_middleware(
        RequestContext, metrics=parts.metrics, on_error=error_handlers.unknown, on_stop=error_handlers.own
    )
    app.add_middleware(Addresses, root_path=settings.root_path)
    error_handlers.install(app)
    config.document(app)
    for routes in (calibration, classify, config, console, feedback, manual, models, observe):
        app.include_router(routes.router, responses=error_responses.ANY)
    for routes in (triton, inference_protocol):  # in this order, so that /v2/models/stats is not read as a model
        app.include_router(routes.router, responses=error_responses.ANY_OF_PROTOCOL)
    return app


def build_parts(settings: Settings, together: Together | None = None) -> Parts:
    """Build and connect every part of one server. Raises as ``create_app``."""
    link = _redis(settings)
    store = ModelStore(settings.model_store)
    load = partial(_load, settings)
    first = [load(store.find(reference)) for reference in _references(settings, store)]
    config, cache = _state(settings, link, first_config(first), together)
    metrics = Metrics(_registry() if together is None else CollectorRegistry())
    metrics.watch(metrics.store_up, lambda: config.is_up)
    samples = _samples(settings, metrics)
    limits = _limits(settings, first[0].device.type == "cpu", cores() if together is None else together.cores)
    served = Served(first[0].runtime, first[0].precision, settings.threads, limits.max_batch_size)
    models = Models(
        first,
        store,
        load,
        config,
        cache,
        metrics,
        limits,
        None if settings.profile is None else LatencyProfile.read(settings.profile),
        None if together is None else partial(_agreed_times, together),
        samples,
        Precomputing(
            served if converts(served.runtime) else None,
            None if together is None else together.shared,
            partial(_check_signature, settings),
        ),
    )
    siblings = together or Alone()
    switching = Switching(models, config)
    trials = Trials(models, config, switching, _exchange(siblings, link))
    siblings.answer("trial", trials.told)
    admission = _admission(settings, models, metrics)
    metrics.cost_per_hour.set(settings.cost_per_hour or 0.0)
    metrics.watch(metrics.in_flight, lambda: admission.images)
    metrics.watch(metrics.config_version, lambda: models.config.version)
    metrics.watch(metrics.config_invalid, lambda: config.is_invalid or switching.obstacle is not None)
    targets = MemoryTargets() if link is None else RedisTargets(link)
    shared = None if together is None else SharedMetrics(metrics, together.files)
    observed = Observed(models, admission, metrics, siblings, shared)
    following = Following(models, siblings, metrics, settings.audit_probability)
    return Parts(
        settings,
        models,
        switching,
        trials,
        admission,
        config,
        metrics,
        targets,
        siblings,
        observed,
        samples,
        Feedback(samples, metrics, siblings),
        following,
        _traces(settings),
    )


def _exchange(siblings: Siblings, link: RedisLink | None) -> Exchange:
    """Exchange of trial counts: with all replicas on the same Redis; without Redis, with this server's processes."""

    async def others(began: float, _: object) -> list[Counts]:
        return await siblings.others("trial", began)

    return others if link is None else RedisCounts(link, others).exchange


def _samples(settings: Settings, metrics: Metrics) -> SampleLog | None:
    if settings.sample_log is None:
        return None
    options = Options(
        settings.sample_log,
        settings.sample_format,
        Bounds(settings.sample_file_bytes, settings.sample_total_bytes),
        settings.sample_share,
        settings.sample_image_bytes,
    )
    return SampleLog(options, lambda result, rows: metrics.samples.labels(result).inc(rows))


def _admission(settings: Settings, models: Models, metrics: Metrics) -> Admission:
    return Admission(
        settings.max_images_in_flight,
        settings.max_bytes_in_flight,
        settings.max_queue_ms / 1e3,
        wait_seconds=models.queued_seconds,
        on_reject=lambda reason, images: metrics.rejected.labels(reason).inc(images),
    )


def _references(settings: Settings, store: ModelStore) -> list[str]:
    """References of the models to serve, each with a different name."""
    references = [settings.model, *settings.models]
    names = [store.locate(reference)[0] for reference in references]
    for name in names:
        if names.count(name) > 1:
            raise InvalidOption("LOWFIRST_MODELS", ",".join(settings.models), f"other models; {name} is named twice")
    return references


def _load(settings: Settings, folder: Path, converted: Path | None = None) -> Predictor:
    _check_signature(settings, folder)
    starting.info("loading %s/%s", folder.parent.name, folder.name)
    predictor = Predictor.load(
        folder, settings.device, settings.precision, settings.runtime, settings.threads, converted
    )
    spec = predictor.spec
    if spec.key != (folder.parent.name, int(folder.name)):
        raise BrokenModel(f"{folder.parent.name}/{folder.name} says that it is {spec.reference}", field="model")
    return predictor


def _check_signature(settings: Settings, folder: Path) -> None:
    """Raises BrokenModel: a key is set, and the folder is not signed with it."""
    if settings.model_key is not None:
        from service.signing import verify  # an extra package that takes a second to import

        verify(folder, settings.model_key)


def _redis(settings: Settings) -> RedisLink | None:
    """Connect to the Redis of the settings, and check that it answers unless it is optional."""
    if not settings.redis_url:
        return None
    link = RedisLink(settings.redis_url.get_secret_value(), settings.redis_prefix)
    if not settings.redis_optional:
        link.check()
    return link


def _state(
    settings: Settings, link: RedisLink | None, start: RuntimeConfig, together: Together | None
) -> tuple[ConfigStore, ResultCache | None]:
    """The store of config and results: Redis if there is one, otherwise memory.

    Without Redis, the parent process holds the config of all processes, and each process has its own results.
    """
    memory = MemoryResultCache(settings.cache_entries) if settings.cache_entries else None
    ttl = settings.cache_ttl_seconds
    if link is None:
        if ttl:
            raise InvalidOption("LOWFIRST_CACHE_TTL_SECONDS", ttl, "0 where LOWFIRST_REDIS_URL is unset")
        return MemoryConfigStore(start) if together is None else together.config_store(start), memory
    return RedisConfigStore(link, start), RedisResultCache(link, ttl) if ttl else memory


def _own_port(
    app: FastAPI, settings: Settings, siblings: Together | None, allowed: keys.Keys
) -> OwnPort | HandedPort | None:
    """The extra port for this replica's own metrics, with the same keys."""
    if settings.metrics_port is None:
        return None
    if not allowed.guard_nothing:
        app.add_middleware(keys.Guard, keys=allowed, on_error=error_handlers.own)
    error_handlers.install(app)
    app.include_router(observe.router)
    if siblings is not None:
        return HandedPort(app, siblings.own_address)
    return OwnPort(app, settings.metrics_host or settings.host, settings.metrics_port)


def _rpc_port(settings: Settings, parts: Parts, allowed: keys.Keys) -> RpcPort | None:
    if settings.grpc_port is None:
        return None
    try:
        from service.api.rpc.port import RpcPort
    except ImportError as error:
        raise InvalidOption("LOWFIRST_GRPC_PORT", settings.grpc_port, "unset without pip install '.[grpc]'") from error
    return RpcPort(parts, allowed, settings, is_shared=isinstance(parts.siblings, Together))


@asynccontextmanager
async def _listed(own_port: OwnPort | HandedPort | None, parts: Parts) -> AsyncIterator[None]:
    """Open that port, and list it for Prometheus."""
    if own_port is None:
        yield
        return
    async with own_port:
        await parts.targets.start(Target(own_port.address, parts.settings.replica or gethostname()))
        yield
        await parts.targets.close()


def _registry() -> CollectorRegistry:
    disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


def _limits(settings: Settings, on_cpu: bool, cores: int) -> Limits:
    """``cores``: the number of cores for this process."""
    workers = settings.workers or (max(1, cores // settings.threads) if on_cpu else 2)
    decoders = settings.decode_threads
    if decoders is None:
        decoders = 0 if on_cpu and workers * settings.threads >= cores else cores
    return Limits(
        max_batch_size=settings.max_batch_size,
        feature_slots=settings.feature_slots,
        workers=workers,
        decode_threads=decoders,
        audit_probability=settings.audit_probability,
        target_latency_seconds=settings.target_latency_ms / 1e3,
    )


def _announce(parts: Parts) -> None:
    for engine in parts.models:
        predictor, spec = engine.predictor, engine.spec
        calibration = predictor.calibration
        if calibration is None:
            logger.warning("%s has no calibration table: the effect of a threshold cannot be predicted", spec.name)
        elif calibration.stands_in_for:
            logger.warning(
                "%s was calibrated for %s %s, not for %s: predictions use that table, and nothing is certified",
                spec.name, calibration.table.runtime, calibration.table.precision, calibration.stands_in_for,
            )  # fmt: skip
        logger.info(
            "serving %s on %s in %s, threshold %s",
            spec.reference, predictor.device, predictor.precision, engine.asked.threshold,
        )  # fmt: skip
        _warn_if_it_does_not_pay(engine)


def _warn_if_it_does_not_pay(engine: Engine) -> None:
    """Log one line if the cascade is predicted to take longer than the single-scale network."""
    threshold = engine.asked.threshold
    expected = engine.predict(threshold)
    effect, spent, break_even = expected.effect, expected.time, expected.break_even
    if effect is None or break_even is None or spent.saved is None or spent.saved >= 0:
        return
    pays_from = "it does not pay at any exit rate" if break_even > 1 else f"it pays if {break_even:.0%} or more do"
    logger.warning(
        "%s does not pay here at threshold %s: %.3f ms of compute per image, %.3f with the single-scale network. "
        "%.0f%% of the images are predicted to end at the first stage; %s. "
        "Lower the threshold, or serve the single-scale network instead",
        engine.spec.reference, threshold, 1e3 * spent.seconds, 1e3 * (spent.single_scale_seconds or 0.0),
        100 * effect.ends[0], pays_from,
    )  # fmt: skip


def _traces(settings: Settings) -> Traces | None:
    if not settings.traces:
        return None
    from service.api.tracing import Traces

    return Traces()


def _allow_pages_of(app: FastAPI, origins: Sequence[str]) -> None:
    """Allow the listed origins. Keys travel in headers, never in cookies, so only pages that know a key can use it."""
    app.add_middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=["GET", "POST", "PATCH"],
        allow_headers=["Authorization", "Content-Type", "If-Match", JSON_LENGTH, "X-API-Key", "X-Request-ID"],
        expose_headers=["ETag", JSON_LENGTH, "Retry-After", "Server-Timing", "X-Request-ID"],
    )


def _warn_if_open(settings: Settings, allowed: keys.Keys) -> None:
    if allowed.refuse_changes:
        logger.warning("config changes are refused (403): %s", keys.HOW_TO_SET)
    if settings.is_exposed and settings.api_key is None:
        logger.warning(
            "anybody who reaches %s may classify: set LOWFIRST_API_KEY to require a key", settings.host or "this host"
        )


async def _agreed_times(together: Together, reference: str, measured: LatencyTable) -> LatencyTable:
    """One latency table for all processes, so that all predict the same."""
    return LatencyTable.of_json(await together.times(reference, measured.as_json()))
