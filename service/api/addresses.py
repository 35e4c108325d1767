"""Addresses as clients and proxies write them: with a slash at the end, or under a proxy's prefix."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.keys import is_under
from service.errors import InvalidOption

# How addresses of this server begin; a test holds them against its routes.
OWN = (
    *("/calibration", "/classify", "/config", "/console", "/docs", "/feedback", "/health", "/metrics", "/models"),
    *("/openapi.json", "/redoc", "/static-offline-docs", "/stats", "/v2"),
)


class Addresses:
    """ASGI middleware, the outermost: an address with a slash at its end is that without it.

    ``root_path`` is the prefix under which a proxy serves this server: it keeps the prefix in what it sends, or not.
    A redirect would be to the address that this server sees, which behind a proxy has another scheme and no prefix.
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self.app = app
        self.root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "http":
            root = self.root_path or scope.get("root_path", "")
            path = scope["path"]
            if self.root_path:  # ASGI has it in the path, too, whether the proxy keeps it or not
                scope["root_path"] = root
                path = path if is_under(path, root) else root + path
            if path[-1:] == "/" and path[:-1] not in ("", root):  # else it is the page, alone or under its prefix
                path = path[:-1]
            scope["path"] = path
        await self.app(scope, receive, send)


def check_prefix(root_path: str) -> None:
    """Raises InvalidOption: a prefix that begins as an address of this server does, so that one may mean the other."""
    first = "/".join(root_path.split("/")[:2])
    if first in OWN:
        raise InvalidOption("LOWFIRST_ROOT_PATH", root_path, f"a prefix that does not begin with {first}")
