"""Every setting is an environment variable with a bound, and a value out of it is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from service.errors import InvalidOption
from service.settings import SHIPPED_MODEL, SHIPPED_STORE, Settings, load_settings, unknown_variables

VALUES = {
    "host": ("0.0.0.0", "0.0.0.0"),
    "port": ("0", 0),
    "root_path": ("/teams/vision/", "/teams/vision"),
    "api_key": ("0123456789-api-key", SecretStr("0123456789-api-key")),
    "admin_key": ("0123456789-admin-key", SecretStr("0123456789-admin-key")),
    "grpc_port": ("8001", 8001),
    "cors_origins": ("https://a.example, http://[::1]:3000", ("https://a.example", "http://[::1]:3000")),
    "receive_timeout_seconds": ("2.5", 2.5),
    "model_store": ("/models", Path("/models")),
    "model": ("bees/2", "bees/2"),
    "model_key": ("/keys/models.pub", Path("/keys/models.pub")),
    "models": ("ants, wasps/2", ("ants", "wasps/2")),
    "device": ("cpu", "cpu"),
    "precision": ("float32", "float32"),
    "processes": ("4", 4),
    "workers": ("3", 3),
    "runtime": ("eager", "eager"),
    "threads": ("2", 2),
    "profile": ("/times.json", Path("/times.json")),
    "cost_per_hour": ("0.25", 0.25),
    "target_latency_ms": ("250", 250.0),
    "max_queue_ms": ("900", 900.0),
    "audit_probability": ("0.5", 0.5),
    "decode_threads": ("5", 5),
    "max_batch_size": ("16", 16),
    "max_connections": ("10", 10),
    "max_images_in_flight": ("9", 9),
    "max_bytes_in_flight": ("1000", 1000),
    "feature_slots": ("7", 7),
    "max_image_bytes": ("100", 100),
    "max_batch_bytes": ("200", 200),
    "max_batch_images": ("2", 2),
    "deadline_ms": ("12.5", 12.5),
    "cache_entries": ("10", 10),
    "cache_ttl_seconds": ("60", 60),
    "sample_log": ("/var/log/samples", "/var/log/samples"),
    "sample_format": ("parquet", "parquet"),
    "sample_share": ("0.25", 0.25),
    "sample_image_bytes": ("100000", 100_000),
    "sample_file_bytes": ("8192", 8192),
    "sample_total_bytes": ("2147483648", 2_147_483_648),
    "redis_url": ("redis://:secret@redis:6379/0", SecretStr("redis://:secret@redis:6379/0")),
    "redis_prefix": ("bees:", "bees:"),
    "redis_optional": ("true", True),
    "drain_delay_seconds": ("0", 0.0),
    "drain_timeout_seconds": ("60", 60),
    "log_level": ("debug", "debug"),
    "log_format": ("json", "json"),
    "traces": ("true", True),
    "metrics_key_required": ("true", True),
    "metrics_port": ("9101", 9101),
    "metrics_host": ("192.0.2.7", "192.0.2.7"),
    "replica": ("bees-1", "bees-1"),
}

OUT_OF_BOUNDS = [
    ("port", "-1"),
    ("port", "65536"),
    ("port", "http"),
    ("grpc_port", "-1"),
    ("grpc_port", "65536"),
    ("root_path", "vision"),
    ("root_path", "/vision?x"),
    ("root_path", "//vision"),
    ("root_path", "/../vision"),
    ("processes", "0"),
    ("processes", "257"),
    ("processes", "many"),
    ("workers", "0"),
    ("workers", "1025"),
    ("workers", "all"),
    ("threads", "0"),
    ("threads", "1025"),
    ("target_latency_ms", "0"),
    ("target_latency_ms", "inf"),
    ("target_latency_ms", "nan"),
    ("cost_per_hour", "0"),
    ("cost_per_hour", "-1"),
    ("cost_per_hour", "inf"),
    ("cost_per_hour", "nan"),
    ("max_queue_ms", "0"),
    ("max_queue_ms", "499"),
    ("max_queue_ms", "inf"),
    ("max_queue_ms", "nan"),
    ("audit_probability", "-0.1"),
    ("audit_probability", "1.5"),
    ("audit_probability", "nan"),
    ("decode_threads", "-1"),
    ("max_batch_size", "0"),
    ("max_batch_size", "1025"),
    ("max_connections", "0"),
    ("max_images_in_flight", "0"),
    ("max_bytes_in_flight", "0"),
    ("feature_slots", "0"),
    ("max_image_bytes", "0"),
    ("max_image_bytes", "16MiB"),
    ("max_batch_bytes", "0"),
    ("max_batch_images", "0"),
    ("max_batch_images", "1025"),
    ("deadline_ms", "0"),
    ("deadline_ms", "-5"),
    ("deadline_ms", "inf"),
    ("deadline_ms", "nan"),
    ("cache_entries", "-1"),
    ("cache_ttl_seconds", "-1"),
    ("cache_ttl_seconds", "31536001"),
    ("cache_ttl_seconds", "1.5"),
    ("sample_format", "csv"),
    ("sample_share", "-0.1"),
    ("sample_share", "1.1"),
    ("sample_share", "nan"),
    ("sample_image_bytes", "-1"),
    ("sample_file_bytes", "4095"),
    ("sample_total_bytes", "8191"),
    ("sample_total_bytes", "100000000"),
    ("redis_optional", "perhaps"),
    ("drain_delay_seconds", "-1"),
    ("drain_delay_seconds", "inf"),
    ("drain_timeout_seconds", "0"),
    ("drain_timeout_seconds", "3601"),
    ("receive_timeout_seconds", "0"),
    ("receive_timeout_seconds", "3601"),
    ("receive_timeout_seconds", "nan"),
    ("cors_origins", "*"),
    ("cors_origins", "null"),
    ("cors_origins", "example.org"),
    ("cors_origins", "https://a.example/"),
    ("cors_origins", "https://a.example https://b.example"),
    ("cors_origins", "https://*.example"),
    ("metrics_key_required", "maybe"),
    ("metrics_port", "-1"),
    ("metrics_port", "65536"),
    ("traces", "maybe"),
    ("log_format", "xml"),
    ("log_level", "loud"),
]


def test_defaults_serve_the_shipped_model_on_this_machine_alone() -> None:
    settings = load_settings()
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert (settings.model_store, settings.model) == (SHIPPED_STORE, SHIPPED_MODEL)


def test_every_setting_is_tested_here() -> None:
    assert set(VALUES) == set(Settings.model_fields)


@pytest.mark.parametrize("name", VALUES)
def test_setting_is_read_from_its_variable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text, value = VALUES[name]
    if name == "metrics_key_required":
        monkeypatch.setenv("LOWFIRST_API_KEY", "0123456789-api-key")
    monkeypatch.setenv(f"LOWFIRST_{name.upper()}", text)
    assert getattr(load_settings(), name) == value
    assert type(getattr(load_settings(), name)) is type(value) or isinstance(value, Path)


@pytest.mark.parametrize(("name", "text"), OUT_OF_BOUNDS)
def test_variable_out_of_bounds_is_named_with_its_value(name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variable = f"LOWFIRST_{name.upper()}"
    monkeypatch.setenv(variable, text)
    with pytest.raises(InvalidOption) as caught:
        load_settings()
    assert caught.value.field == variable
    assert caught.value.message.startswith(f"{variable} is {text!r}; it must be ")
    assert "String should" not in caught.value.message


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_empty_variable_means_unset(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"LOWFIRST_{name.upper()}", "")
    assert getattr(load_settings(), name) == Settings.model_fields[name].default


@pytest.mark.parametrize("text", ["INFO", "Info", "info"])
def test_log_level_is_read_in_any_case(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWFIRST_LOG_LEVEL", text)
    assert load_settings().log_level == "info"


def test_unknown_variable_is_named_with_the_nearest_setting() -> None:
    given = {"LOWFIRST_WORKER": "2", "LOWFIRST_XYZ": "", "LOWFIRST_PORT": "1", "PATH": ""}
    assert unknown_variables(given) == {"LOWFIRST_WORKER": "LOWFIRST_WORKERS", "LOWFIRST_XYZ": None}


def test_queue_must_leave_room_for_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWFIRST_TARGET_LATENCY_MS", "1000")
    with pytest.raises(InvalidOption, match=r"MAX_QUEUE_MS is 750.* at least LOWFIRST_TARGET_LATENCY_MS, 1000"):
        load_settings()


def test_every_number_has_a_bound_that_is_tested() -> None:
    numbers = {name for name, (_, value) in VALUES.items() if isinstance(value, int | float)}
    assert numbers <= {name for name, _ in OUT_OF_BOUNDS}


def test_what_the_command_line_gives_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWFIRST_PORT", "1")
    monkeypatch.setenv("LOWFIRST_MODEL", "bees")
    settings = load_settings({"port": 2})
    assert (settings.port, settings.model) == (2, "bees")


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_settings().port = 1  # type: ignore[misc]


def test_every_setting_says_what_it_is() -> None:
    assert all(field.description for field in Settings.model_fields.values())


@pytest.mark.parametrize("variable", ["LOWFIRST_API_KEY", "LOWFIRST_ADMIN_KEY"])
@pytest.mark.parametrize("key", [" ", "hunter2hunter2x", "sixteen letters!", "schlüsselschlüssel", "x" * 16 + "\n"])
def test_a_key_easy_to_guess_or_to_mistype_is_refused_and_not_told(
    variable: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, key)
    with pytest.raises(InvalidOption, match=f"{variable} is .* must be at least 16 ASCII characters") as caught:
        load_settings()
    for told in (caught.value.message, repr(caught.value.value), str(caught.value.__cause__)):
        assert not key.strip() or key not in told


def test_a_key_is_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("API", "ADMIN"):
        monkeypatch.setenv(f"LOWFIRST_{name}_KEY", f"secret-{name}-0123456789")
    settings = load_settings()
    for told in (repr(settings), str(settings), str(settings.model_dump()), settings.model_dump_json()):
        assert "0123456789" not in told
    with pytest.raises(ValidationError) as caught:
        Settings(admin_key=SecretStr("too-short-999"))
    assert "999" not in str(caught.value)


def test_the_admin_key_is_another_than_the_api_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("API", "ADMIN"):
        monkeypatch.setenv(f"LOWFIRST_{name}_KEY", "0123456789abcdef")
    with pytest.raises(InvalidOption, match=r"ADMIN_KEY is .*; it must be different from LOWFIRST_API_KEY"):
        load_settings()


def test_metrics_cannot_ask_for_a_key_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWFIRST_METRICS_KEY_REQUIRED", "1")
    with pytest.raises(InvalidOption, match=r"unset, unless LOWFIRST_API_KEY or LOWFIRST_ADMIN_KEY is set"):
        load_settings()


def test_every_page_may_use_the_server_only_where_changes_need_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWFIRST_CORS_ORIGINS", "*")
    with pytest.raises(InvalidOption, match=r"`\*` requires LOWFIRST_ADMIN_KEY"):
        load_settings()
    monkeypatch.setenv("LOWFIRST_ADMIN_KEY", "0123456789abcdef")
    assert load_settings().cors_origins == ("*",)


@pytest.mark.parametrize(
    ("host", "is_exposed"),
    [
        ("127.0.0.1", False), ("127.1.2.3", False), ("::1", False), ("localhost", False),
        ("0.0.0.0", True), ("::", True), ("10.0.0.1", True), ("", True), ("localhost.example.org", True),
    ],
)  # fmt: skip
def test_whether_other_machines_may_reach_the_server(host: str, is_exposed: bool) -> None:
    assert Settings(host=host).is_exposed == is_exposed


def test_password_of_a_url_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWFIRST_REDIS_URL", "redis://:secret@redis:6379/0")
    assert "secret" not in repr(load_settings())
