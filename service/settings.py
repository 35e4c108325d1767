"""What is fixed when the server starts. The environment is read here and nowhere else."""

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
    """Every setting is the environment variable ``LOWFIRST_`` and its name in capitals. Empty means unset."""

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
    root_path: str = Field(
        "", description="Prefix under which a proxy serves this server, such as /vision; empty: none."
    )
    api_key: SecretStr | None = Field(None, description="Key that clients must send; unset: none is asked for.")
    admin_key: SecretStr | None = Field(
        None, description="Key for changes; unset: only a server on a loopback address without any key allows them."
    )
    metrics_key_required: bool = Field(False, description="Whether /metrics asks for a key too.")
    metrics_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port of this replica's own for /metrics, /stats and /health, 0: a free one, which "
        "/metrics/targets lists; unset: none.",
    )
    metrics_host: str | None = Field(
        None, description="Address of this machine that Prometheus reaches that port at; unset: LOWFIRST_HOST."
    )
    replica: str | None = Field(
        None, description="Name of this replica, the label `replica` in that list; unset: the machine's name."
    )
    grpc_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port of the Open Inference Protocol over gRPC (extra `grpc`), 0: a free one; unset: none.",
    )
    cors_origins: Listed = Field(
        (), description="Origins whose pages may use the server, with commas between; `*`: all, with an admin key only."
    )
    model_store: Path = Field(SHIPPED_STORE, description="Folder of models, <name>/<version>/.")
    model: str = Field(SHIPPED_MODEL, description="Model to serve: name, or name/version.")
    models: Listed = Field((), description="More models to serve, after commas; `?model=` names them in requests.")
    model_key: Path | None = Field(
        None,
        description="Public key (PEM) that every model must be signed with (`lowfirst sign`); unset: unsigned ones "
        "are served too.",
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    precision: str = Field(
        "auto", description="auto, float32, bfloat16, float16 (CUDA) or int8 (OpenVINO, once quantised)."
    )
    runtime: str = Field("auto", description="auto, eager, openvino or cuda; auto: the fastest that is installed.")
    processes: Literal["auto"] | int = Field(
        "auto",
        description="Processes that serve as one, each with its share of workers, cores and limits; auto: one for two "
        "cores, at least 2 and at most 8, but no more than workers; 1 on a GPU.",
    )
    workers: int | None = Field(
        None, ge=1, le=1024, description="Threads that run the network; unset: one a core, two for a GPU."
    )
    threads: int = Field(1, ge=1, le=1024, description="Cores that one batch uses (CPU).")
    decode_threads: int | None = Field(
        None,
        ge=0,
        le=1024,
        description="Threads that decode. Default: 0 if every core has a worker (workers decode), else one per core.",
    )
    max_batch_size: int = Field(
        32, ge=1, le=1024, description="Images per batch at most; measured times may keep it smaller."
    )
    profile: Path | None = Field(
        None, description="Latency profile written by `lowfirst bench --save`. Default: measured at start-up."
    )
    cost_per_hour: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="What an hour of one worker (a core or a GPU) costs, in any currency: `/stats` tells it per "
        "million images.",
    )
    max_connections: int | None = Field(
        None,
        ge=1,
        description="Connections open at once; beyond: 503. Default: what the limit on descriptors leaves room for.",
    )
    max_images_in_flight: int = Field(256, ge=1, description="Images accepted and not yet answered; beyond: 429.")
    max_bytes_in_flight: int = Field(256 * MIB, ge=1, description="Bytes of their bodies; beyond: 429.")
    feature_slots: int = Field(128, ge=1, description="Images whose features may wait for the next stage.")
    max_image_bytes: int = Field(16 * MIB, ge=1, description="Bytes of one encoded image; beyond: 413.")
    max_batch_bytes: int = Field(64 * MIB, ge=1, description="Bytes of a body of /classify/batch; beyond: 413.")
    max_batch_images: int = Field(64, ge=1, le=1024, description="Images in one request of /classify/batch.")
    receive_timeout_seconds: float = Field(
        10,
        gt=0,
        le=3600,
        allow_inf_nan=False,
        description="How long a request's head may take to arrive, then its body (more above 64 KiB); beyond: 408.",
    )
    deadline_ms: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Deadline of requests that name none; unset: none."
    )
    target_latency_ms: float = Field(
        500, gt=0, allow_inf_nan=False, description="Work that may be queued before a threshold sinks to its floor."
    )
    max_queue_ms: float = Field(
        750,
        gt=0,
        allow_inf_nan=False,
        description="Work that may be queued, at least LOWFIRST_TARGET_LATENCY_MS; behind more: 429.",
    )
    audit_probability: float = Field(
        0.01, ge=0, le=1, description="Share of exited images that get the remaining stages too, to count disagreement."
    )
    cache_entries: int = Field(0, ge=0, description="Images whose results are kept in memory; 0: none.")
    cache_ttl_seconds: int = Field(
        0, ge=0, le=365 * 86400, description="Results are kept in Redis instead, each for so long; 0: they are not."
    )
    sample_log: str | None = Field(
        None,
        description="Folder that a share of the images is logged in, with what each stage said of them; or a URL for "
        "fsspec, s3://… (extra `log`). Unset: none is.",
    )
    sample_format: Literal["jsonl", "parquet"] = Field(
        "jsonl", description="Of that log: jsonl, or parquet (extra `log`)."
    )
    sample_share: float = Field(
        1.0,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Share of the images that are logged; all stages run on as many of these as audits have room for.",
    )
    sample_image_bytes: int = Field(
        0, ge=0, description="Encoded images of up to so many bytes are logged too; 0: none is."
    )
    sample_file_bytes: int = Field(64 * MIB, ge=4096, description="Bytes of one file of the log.")
    sample_total_bytes: int = Field(
        1024 * MIB,
        ge=8192,
        description="Bytes of all files in its folder, at least two of one; the oldest go first.",
    )
    redis_url: SecretStr | None = Field(
        None, description="Redis that replicas share their config and results through; unset: this process's memory."
    )
    redis_prefix: str = Field("lowfirst:", description="Of every key there: several fleets can share a Redis.")
    redis_optional: bool = Field(
        False, description="Start though Redis does not answer, with this process's own config until it does."
    )
    drain_delay_seconds: float = Field(
        3.0, ge=0, le=3600, description="On SIGTERM: how long to serve on, not ready, before the listener closes."
    )
    drain_timeout_seconds: int = Field(
        30, ge=1, le=3600, description="Then: how long accepted requests may take to finish."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="debug, info, warning, error.")
    log_format: Literal["text", "json"] = Field("text", description="text, or json: an object a line.")
    traces: bool = Field(
        False, description="Whether traces are sent by OpenTelemetry, as the OTEL_ variables say (extra `otel`)."
    )

    @property
    def is_exposed(self) -> bool:
        """Whether other machines may reach the server."""
        if self.host == "localhost":
            return False
        try:
            return not ip_address(self.host).is_loopback
        except ValueError:  # a name, which may mean anything
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
            raise PydanticCustomError("key", "at least 16 characters of ASCII, none of them a space")
        return value

    @field_validator("admin_key")
    @classmethod
    def _is_a_key_of_its_own(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if value is not None and value == info.data.get("api_key"):
            raise PydanticCustomError(
                "same_key", "another than LOWFIRST_API_KEY, or every client may change the config"
            )
        return value

    @field_validator("metrics_key_required")
    @classmethod
    def _has_a_key_to_ask_for(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("api_key") is None and info.data.get("admin_key") is None:
            raise PydanticCustomError("no_key", "left unset without LOWFIRST_API_KEY or LOWFIRST_ADMIN_KEY")
        return value

    @field_validator("cors_origins")
    @classmethod
    def _lists_origins(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        for origin in value:
            if origin == "*" and info.data.get("admin_key") is None:  # else any page a user opens could make changes
                raise PydanticCustomError("any_origin", "a list of origins; `*` takes LOWFIRST_ADMIN_KEY")
            if origin != "*" and not ORIGIN.fullmatch(origin):
                raise PydanticCustomError("origins", "origins like https://example.org:8443, with commas between")
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
    """Variables called LOWFIRST_* that are no setting, each with the nearest that is."""
    known = [f"{PREFIX}{name.upper()}" for name in Settings.model_fields]
    strange = [name for name in environment if name.startswith(PREFIX) and name not in known]
    return {name: next(iter(get_close_matches(name, known, 1, 0.8)), None) for name in sorted(strange)}


def load_settings(given: Mapping[str, object] | None = None) -> Settings:
    """The settings of this environment, with ``given`` ones (of a command line) in their place.

    Raises:
        InvalidOption: naming the first variable that is out of bounds.
    """
    try:
        return Settings(**dict(given or {}))  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        name = PREFIX + "_".join(map(str, first["loc"])).upper()
        value = "**********" if name.endswith("_KEY") else first["input"]  # a wrong key may be nearly a right one
        raise InvalidOption(name, value, first["msg"].removeprefix("Input should be ")) from error
