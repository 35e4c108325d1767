"""Requests that bypass FastAPI's stack, which took longer than everything else for an image."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.error_handlers import KNOWN, answer

Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]


class DirectRoute(APIRoute):
    """A route whose endpoint gets the raw request. FastAPI documents its parameters but does not resolve them."""

    def get_route_handler(self) -> Endpoint:
        """The handler of a request."""
        endpoint: Endpoint = self.endpoint
        return endpoint


class Direct:
    """Innermost ASGI middleware: calls the endpoints of direct routes with a fixed path.

    Other requests go to the router. Both paths give the same answers: they use the same endpoints and error handlers.
    """

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        self.app = app
        self._routes = {
            (method, route.path): route
            for route in routes
            if isinstance(route, DirectRoute) and not route.param_convertors
            for method in route.methods or ()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        route = None
        if scope["type"] == "http":
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            route = self._routes.get((scope["method"], path))
        if route is None:
            await self.app(scope, receive, send)
            return
        scope["route"] = route
        request = Request(scope, receive)
        try:
            response: Response = await route.endpoint(request)
        except KNOWN as error:
            response = await answer(request, error)
        await response(scope, receive, send)
