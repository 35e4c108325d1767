"""Requests that are answered without FastAPI's stack: it took longer than all else that is done for an image."""

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
    """A route whose endpoint is given the request as it is. FastAPI documents its parameters, and solves none."""

    def get_route_handler(self) -> Endpoint:
        """What answers a request."""
        endpoint: Endpoint = self.endpoint
        return endpoint


class Direct:
    """ASGI middleware, the innermost: calls endpoints of direct routes itself, of those whose path is fixed.

    All else goes on to the router. Answers are the same on both ways: the same endpoint gives them, and the same
    handlers those to errors.
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
        """One request."""
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
