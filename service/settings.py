"""Settings that are fixed at start-up. Only this file reads the environment."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.errors import InvalidOption

PREFIX = "LOWFIRST_"
SHIPPED_STORE = Path(__file__).with_name("model_store").resolve()  # a folder in a wheel, a link in a checkout
SHIPPED_MODEL = "imagenette-resnet18"

MIB = 1024 * 1024
MOST_PROCESSES = 256
ROOT_PATH = re.compile(r"(/[A-Za-z0-9][A-Za-z0-9._~-]*)+", re.ASCII)
KEY = re.compile(r"[!-~]{16,}", re.ASCII)
ORIGIN = re.compile(r"https?://[A-Za-z0-9._-]+(:[0-9]{1,5})?|https?://\[[0-9a-f:]+\](:[0-9]{1,5})?")


def _split(value: object) -> object:
    return [item for item in map(str.strip, value.split(",")) if item] if isinstance(value, str) else value


Listed = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]


class Settings(BaseSettings):
    """Each setting is the environment variable ``LOWFIRST_`` plus its name in capitals. Empty counts as unset."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        frozen=True,
        extra="ignore",
        validate_default=True,
        hide_input_in_errors=True,
    )

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    root_path: str = Field("", description="Prefix under which a proxy serves this server, for example /vision.")
    api_key: SecretStr | None = Field(None, description="Key that clients must send. Default: no key is needed.")
    admin_key: SecretStr | None = Field(
        None,
        description="Key for config changes. Default: changes are allowed only on a loopback address without any key.",
    )
    metrics_key_required: bool = Field(False, description="Whether /metrics requires a key too.")
    metrics_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Extra port of this replica for /metrics, /stats and /health, listed by /metrics/targets; "
        "0 takes a free one.",
    )
    metrics_host: str | None = Field(
        None, description="Address at which Prometheus reaches LOWFIRST_METRICS_PORT. Default: LOWFIRST_HOST."
    )
    replica: str | None = Field(
        None, description="Name of this replica, the label `replica` in /metrics/targets. Default: the host name."
    )
    grpc_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port for the Open Inference Protocol over gRPC (extra `grpc`); 0 takes a free one. "
        "Default: no gRPC.",
    )
    cors_origins: Listed = Field(
        (),
        description="Comma-separated origins whose web pages may use the server; `*` allows all and requires "
        "an admin key.",
    )
    model_store: Path = Field(SHIPPED_STORE, description="Folder with models, <name>/<version>/.")
    model: str = Field(SHIPPED_MODEL, description="Model to serve: name, or name/version.")
    models: Listed = Field((), description="More models to serve, comma-separated; requests select one with `?model=`.")
    model_key: Path | None = Field(
        None,
        description="Public key (PEM); only models signed with its private key are served (`lowfirst sign`). "
        "Default: unsigned models are served too.",
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    precision: str = Field(
        "auto", description="auto, float32, bfloat16, float16 (CUDA) or int8 (OpenVINO, once quantised)."
    )
    runtime: str = Field("auto", description="auto, eager, openvino or cuda; auto takes the fastest installed one.")
    processes: Literal["auto"] | int = Field(
        "auto",
        description="Number of processes; they share workers, cores and limits. auto: one per two cores, "
        "between 2 and 8, but not more than workers; on a GPU 1.",
    )
    workers: int | None = Field(
        None, ge=1, le=1024, description="Threads that run the network. Default: one per core, or two per GPU."
    )
    threads: int = Field(1, ge=1, le=1024, description="Cores used by one batch (CPU).")
    decode_threads: int | None = Field(
        None,
        ge=0,
        le=1024,
        description="Threads that decode. Default: 0 if every core has a worker (workers decode), otherwise "
        "one per core.",
    )
    max_batch_size: int = Field(
        32, ge=1, le=1024, description="Most images per batch; the measured latency may limit it further."
    )
    profile: Path | None = Field(
        None, description="Latency profile written by `lowfirst bench --save`. Default: measured at start-up."
    )
    cost_per_hour: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Cost of one worker (a core or a GPU) per hour, in any currency; /stats and the "
        "dashboards show the cost per million images.",
    )
    max_connections: int | None = Field(
        None,
        ge=1,
        description="Most open connections; above it 503. Default: as many as the limit on file descriptors allows.",
    )
    max_images_in_flight: int = Field(256, ge=1, description="Most images accepted and not yet answered; above it 429.")
    max_bytes_in_flight: int = Field(
        256 * MIB, ge=1, description="Most bytes of request bodies held in memory; above it 429."
    )
    feature_slots: int = Field(128, ge=1, description="Most images whose features may wait for the next stage.")
    max_image_bytes: int = Field(16 * MIB, ge=1, description="Most bytes of one encoded image; above it 413.")
    max_batch_bytes: int = Field(64 * MIB, ge=1, description="Most bytes of a body of /classify/batch; above it 413.")
    max_batch_images: int = Field(64, ge=1, le=1024, description="Most images in one request to /classify/batch.")
    receive_timeout_seconds: float = Field(
        10,
        gt=0,
        le=3600,
        allow_inf_nan=False,
        description="Time for a request's head to arrive, and then for its body (longer above 64 KiB); after it 408.",
    )
    deadline_ms: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Deadline of requests without one of their own. Default: none."
    )
    target_latency_ms: float = Field(
        500, gt=0, allow_inf_nan=False, description="Queued work above which the threshold drops towards its floor."
    )
    max_queue_ms: float = Field(
        750,
        gt=0,
        allow_inf_nan=False,
        description="Queued work above which requests get 429; at least LOWFIRST_TARGET_LATENCY_MS.",
    )
    audit_probability: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Share of exited images that run the remaining stages too, to measure disagreement.",
    )
    cache_entries: int = Field(0, ge=0, description="Images whose results are cached in memory; 0 turns the cache off.")
    cache_ttl_seconds: int = Field(
        0,
        ge=0,
        le=365 * 86400,
        description="Time for which results are cached in Redis instead of in memory; 0 turns this off.",
    )
    sample_log: str | None = Field(
        None,
        description="Folder for the sample log, which records what each stage predicted; or a URL for fsspec, "
        "s3://… (extra `log`). Default: no log.",
    )
    sample_format: Literal["jsonl", "parquet"] = Field(
        "jsonl", description="Format of the sample log: jsonl, or parquet (extra `log`)."
    )
    sample_share: float = Field(
        1.0,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Share of images that are logged; of these, as many run all stages as audits have room for.",
    )
    sample_image_bytes: int = Field(0, ge=0, description="Encoded images up to this size are logged too; 0 logs none.")
    sample_file_bytes: int = Field(64 * MIB, ge=4096, description="Size of one file of the sample log.")
    sample_total_bytes: int = Field(
        1024 * MIB,
        ge=8192,
        description="Most bytes of all sample files in the folder, at least two files; the oldest are deleted first.",
    )
    redis_url: SecretStr | None = Field(
        None, description="Redis through which replicas share config and results. Default: both stay in memory."
    )
    redis_prefix: str = Field(
        "lowfirst:", description="Prefix of all Redis keys, so that several fleets can share one Redis."
    )
    redis_optional: bool = Field(
        False, description="Start even if Redis does not answer, with this server's own config until it does."
    )
    drain_delay_seconds: float = Field(
        3.0,
        ge=0,
        le=3600,
        description="After SIGTERM: how long the server keeps serving, not ready, before it closes the listener.",
    )
    drain_timeout_seconds: int = Field(
        30, ge=1, le=3600, description="After that: how long accepted requests may take to finish."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="debug, info, warning, error.")
    log_format: Literal["text", "json"] = Field("text", description="text, or json (one object per line).")
    traces: bool = Field(
        False, description="Whether to send OpenTelemetry traces, configured by the OTEL_ variables (extra `otel`)."
    )

    @property
    def is_exposed(self) -> bool:
        """Whether other machines can reach the server."""
        if self.host == "localhost":
            return False
        try:
            return not ip_address(self.host).is_loopback
        except ValueError:  # a host name, which may resolve to any address
            return True

    @field_validator("log_level", "log_format", "sample_format", mode="before")
    @classmethod
    def _in_any_case(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @field_validator("root_path")
    @classmethod
    def _is_a_prefix(cls, value: str) -> str:
        bare = value.rstrip("/")
        if bare and not ROOT_PATH.fullmatch(bare):
            raise PydanticCustomError("root_path", "a path like /vision or /teams/vision")
        return bare

    @field_validator("processes", mode="before")
    @classmethod
    def _is_auto_or_a_number(cls, value: object) -> object:
        if value != "auto" and not (str(value).isdecimal() and 1 <= int(str(value)) <= MOST_PROCESSES):
            raise PydanticCustomError("processes", "auto, or a whole number from 1 to {most}", {"most": MOST_PROCESSES})
        return value

    @field_validator("api_key", "admin_key")
    @classmethod
    def _is_hard_to_guess(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not KEY.fullmatch(value.get_secret_value()):
            raise PydanticCustomError("key", "at least 16 ASCII characters without spaces")
        return value

    @field_validator("admin_key")
    @classmethod
    def _is_a_key_of_its_own(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if value is not None and value == info.data.get("api_key"):
            raise PydanticCustomError(
                "same_key", "different from LOWFIRST_API_KEY, otherwise every client may change the config"
            )
        return value

    @field_validator("metrics_key_required")
    @classmethod
    def _has_a_key_to_ask_for(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("api_key") is None and info.data.get("admin_key") is None:
            raise PydanticCustomError("no_key", "unset, unless LOWFIRST_API_KEY or LOWFIRST_ADMIN_KEY is set")
        return value

    @field_validator("cors_origins")
    @classmethod
    def _lists_origins(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        for origin in value:
            if (
                origin == "*" and info.data.get("admin_key") is None
            ):  # otherwise any page that a user opens could make changes
                raise PydanticCustomError("any_origin", "a list of origins; `*` requires LOWFIRST_ADMIN_KEY")
            if origin != "*" and not ORIGIN.fullmatch(origin):
                raise PydanticCustomError("origins", "comma-separated origins like https://example.org:8443")
        return value

    @field_validator("sample_total_bytes")
    @classmethod
    def _has_room_for_two_files(cls, value: int, info: ValidationInfo) -> int:
        each = info.data.get("sample_file_bytes", 0)
        if value < 2 * each:
            raise PydanticCustomError(
                "total", "at least {least}, two of LOWFIRST_SAMPLE_FILE_BYTES", {"least": 2 * each}
            )
        return value

    @field_validator("max_queue_ms")
    @classmethod
    def _leaves_room_for_the_target(cls, value: float, info: ValidationInfo) -> float:
        target = info.data.get("target_latency_ms", 0.0)
        if value < target:
            raise PydanticCustomError("max_queue", "at least LOWFIRST_TARGET_LATENCY_MS, {target}", {"target": target})
        return value


def unknown_variables(environment: Mapping[str, str]) -> dict[str, str | None]:
    """Unknown variables named LOWFIRST_*, each with the nearest known one."""
    known = [f"{PREFIX}{name.upper()}" for name in Settings.model_fields]
    strange = [name for name in environment if name.startswith(PREFIX) and name not in known]
    return {name: next(iter(get_close_matches(name, known, 1, 0.8)), None) for name in sorted(strange)}


def load_settings(given: Mapping[str, object] | None = None) -> Settings:
    """The settings from the environment; ``given`` ones (from a command line) take precedence.

    Raises:
        InvalidOption: naming the first variable that is out of bounds.
    """
    try:
        return Settings(**dict(given or {}))  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        name = PREFIX + "_".join(map(str, first["loc"])).upper()
        value = "**********" if name.endswith("_KEY") else first["input"]  # a wrong key may be almost a right one
        raise InvalidOption(name, value, first["msg"].removeprefix("Input should be ")) from error
