"""Normalises addresses: a trailing slash, and the prefix of a proxy."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.keys import is_under
from service.errors import InvalidOption

# First parts of this server's addresses; a test compares them with its routes.
OWN = (
    *("/calibration", "/classify", "/config", "/console", "/docs", "/feedback", "/health", "/metrics", "/models"),
    *("/openapi.json", "/redoc", "/static-offline-docs", "/stats", "/v2"),
)


class Addresses:
    """Outermost ASGI middleware: removes a trailing slash.

    ``root_path`` is the prefix under which a proxy serves this server; the proxy may keep or strip it. A redirect would
    name the address seen by this server, which behind a proxy has another scheme and no prefix.
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self.app = app
        self.root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "http":
            root = self.root_path or scope.get("root_path", "")
            path = scope["path"]
            if self.root_path:  # ASGI's path includes the prefix, whether the proxy keeps it or not
                scope["root_path"] = root
                path = path if is_under(path, root) else root + path
            if path[-1:] == "/" and path[:-1] not in ("", root):  # otherwise it is the page, with or without the prefix
                path = path[:-1]
            scope["path"] = path
        await self.app(scope, receive, send)


def check_prefix(root_path: str) -> None:
    """Raise InvalidOption if a prefix starts like an address of this server, because it would be ambiguous."""
    first = "/".join(root_path.split("/")[:2])
    if first in OWN:
        raise InvalidOption("LOWFIRST_ROOT_PATH", root_path, f"a prefix that does not begin with {first}")
