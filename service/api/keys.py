"""Access control: one guard before every route, and its description in OpenAPI."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Literal

from fastapi import FastAPI
from pydantic import SecretStr
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import Forbidden, LowfirstError, Unauthorized
from service.settings import Settings

Need = Literal["nothing", "api", "admin"]

PROBES = ("/health", "/v2/health")
PAGES = ("/docs", "/redoc", "/openapi.json", "/static-offline-docs", "/console", "/manual")
METRICS = "/metrics"
CHANGING = ("PATCH", "PUT", "DELETE")
READING = ("GET", "HEAD", "OPTIONS")
HOW_TO_SET = "set LOWFIRST_ADMIN_KEY to at least 16 characters, for instance those of `openssl rand -hex 16`"
SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "LOWFIRST_API_KEY; for changes LOWFIRST_ADMIN_KEY."},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same."},
}


class Keys:
    """The keys of a server, and what they allow. The admin key allows everything that the API key does."""

    def __init__(self, settings: Settings) -> None:
        self._api = _bytes(settings.api_key)
        self._admin = _bytes(settings.admin_key)
        self._metrics_need_a_key = settings.metrics_key_required
        self._changes_are_free = not (self._api or self._admin or settings.is_exposed)

    @property
    def guard_nothing(self) -> bool:
        """Whether every request is allowed."""
        return self._changes_are_free

    @property
    def refuse_changes(self) -> bool:
        """Whether no key allows a change."""
        return self._admin is None and not self._changes_are_free

    def needed(self, method: str, path: str) -> Need:
        """The key that a request needs. An unknown path needs one too."""
        if method in CHANGING or (is_under(path, "/config") and method not in READING):
            return "nothing" if self._changes_are_free else "admin"
        if is_under(path, METRICS) and self._metrics_need_a_key:
            return "api"
        is_open = path == "/" or any(is_under(path, prefix) for prefix in (METRICS, *PROBES, *PAGES))
        return "nothing" if is_open or self._api is None else "api"

    def refusal(self, method: str, path: str, headers: Iterable[tuple[bytes, bytes]]) -> LowfirstError | None:
        """Why a request is refused; None if it is not."""
        needed = self.needed(method, path)
        if needed == "nothing":
            return None
        if needed == "admin" and self._admin is None:
            return Forbidden(f"the config of this server cannot be changed: {HOW_TO_SET}")
        given = _given(headers)
        if given is None:
            return Unauthorized("a key is needed: send it as `Authorization: Bearer KEY` or `X-API-Key: KEY`")
        if _same(given, self._admin):
            return None
        if not _same(given, self._api):
            return Unauthorized("the key is wrong")
        return Forbidden("the API key does not allow changes; the admin key does") if needed == "admin" else None


class Guard:
    """ASGI middleware: requests refused by ``keys`` are answered by ``on_error``."""

    def __init__(self, app: ASGIApp, keys: Keys, on_error: Callable[[Request, Exception], Awaitable[Response]]) -> None:
        self.app = app
        self.keys = keys
        self.on_error = on_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        refusal = None
        if scope["type"] == "http":
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            refusal = self.keys.refusal(scope["method"], path, scope["headers"])
        if refusal is None:
            await self.app(scope, receive, send)
        else:
            response = await self.on_error(Request(scope), refusal)
            await response(scope, receive, send)


def document(app: FastAPI, keys: Keys) -> None:
    """Describe in OpenAPI which routes of ``app`` need a key."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        schema = plain()
        schema.setdefault("components", {})["securitySchemes"] = SCHEMES
        for path, operations in schema["paths"].items():
            for method, operation in operations.items():
                if keys.needed(method.upper(), path) != "nothing":
                    operation["security"] = [{name: []} for name in SCHEMES]
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


def is_under(path: str, prefix: str) -> bool:
    """Whether ``path`` is ``prefix`` or below it."""
    return path == prefix or path.startswith(prefix + "/")


def _given(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """The key in a request's headers; ``X-API-Key`` comes first, because ``Authorization`` may be for a proxy."""
    found = None
    for name, value in headers:
        if name == b"x-api-key":
            return value.strip()
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            found = value[7:].strip()
    return found


def _same(given: bytes, key: bytes | None) -> bool:
    return key is not None and hmac.compare_digest(given, key)


def _bytes(key: SecretStr | None) -> bytes | None:
    return None if key is None else key.get_secret_value().encode()
