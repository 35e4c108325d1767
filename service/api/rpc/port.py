"""The gRPC port, beside the HTTP port, in the same event loop."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import grpc

from service.api.dependencies import Parts
from service.api.keys import Keys, is_under
from service.api.request_context import ACCEPTED_ID, HEADER, new_id
from service.api.rpc.calls import CALLS, Call, Method
from service.api.rpc.messages import METHODS, SERVICE, Message
from service.errors import Busy, ClientLeft, InvalidOption, LowfirstError
from service.log import current_request, logger
from service.metrics import STATUSES
from service.processes.reception import free
from service.settings import Settings

PORT = "LOWFIRST_GRPC_PORT"

PROBE = "/v2/health"

# Largest size of a request besides its images.
HEAD_BYTES = 1024 * 1024

# Most calls that may wait for an answer that there is no room.
WAITING = 64

# Seconds for calls to finish after HTTP has finished.
CLOSE_SECONDS = 5.0

# gRPC code by HTTP status; INTERNAL for any other.
CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    415: grpc.StatusCode.INVALID_ARGUMENT,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}

Handler = Callable[[Message, Any], Awaitable[Message]]


class RpcPort:
    """``async with`` it: calls are answered.

    Args:
        parts: of the server. ``keys``: access control.
        settings: of this process. ``is_shared``: whether other processes listen on the same port: the kernel
            distributes connections among them (SO_REUSEPORT).

    Raises:
        InvalidOption: the port cannot be used.
    """

    def __init__(self, parts: Parts, keys: Keys, settings: Settings, is_shared: bool) -> None:
        assert settings.grpc_port is not None
        self._parts = parts
        self._keys = keys
        self._settings = settings
        self._is_shared = is_shared
        if not is_shared:
            try:
                free(settings.host, settings.grpc_port)
            except OSError as error:
                raise _taken(settings.host, settings.grpc_port, error.strerror or str(error)) from error
        for status in STATUSES:
            parts.metrics.requests.labels(CALLS["ModelInfer"].route, status)

    async def __aenter__(self) -> RpcPort:
        settings = self._settings
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", settings.max_batch_bytes + HEAD_BYTES),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", int(self._is_shared)),
            ],
            maximum_concurrent_rpcs=settings.max_images_in_flight + WAITING,
        )
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                self._handler(method),
                request_deserializer=METHODS[name][0].FromString,
                response_serializer=METHODS[name][1].SerializeToString,
            )
            for name, method in CALLS.items()
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        try:
            port = self._server.add_insecure_port(f"{host}:{settings.grpc_port}")
        except RuntimeError as error:
            raise _taken(settings.host, settings.grpc_port or 0, str(error)) from error
        await self._server.start()
        if self._parts.siblings.index == 0:  # the others would log the same
            logger.info("listening on grpc://%s:%d", host, port)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(min(CLOSE_SECONDS, self._settings.drain_timeout_seconds))

    def _handler(self, method: Method) -> Handler:
        metrics = self._parts.metrics
        seconds = metrics.request_seconds.labels(method.route)

        async def answer(asked: Message, context: Any) -> Message:
            arrival = time.monotonic()
            headers = [_as_bytes(*each) for each in context.invocation_metadata()]
            id_ = _given_id(headers) or new_id()
            current_request.set(id_.decode())
            call = Call(id_.decode(), arrival, context.time_remaining())
            error: LowfirstError | None = None
            status = ClientLeft.status  # unless it is answered
            try:
                await context.send_initial_metadata(((HEADER.decode(), call.request_id),))
                answered = await self._answer(method, asked, call, headers)
                status = 200
            except LowfirstError as found:
                error, status = found, found.status
            except Exception:
                logger.exception("request %s failed", call.request_id)
                error, status = LowfirstError("internal error"), 500
            finally:
                spent = time.monotonic() - arrival
                metrics.requests.labels(method.route, status).inc()
                seconds.observe(spent)
                if logger.isEnabledFor(logging.DEBUG):
                    logger.debug("%s %d in %.3f ms", method.route, status, 1e3 * spent)
            if error is None:
                return answered
            return await context.abort(CODES.get(status, grpc.StatusCode.INTERNAL), error.message, _trailing(error))

        return answer

    async def _answer(
        self, method: Method, asked: Message, call: Call, headers: Iterable[tuple[bytes, bytes]]
    ) -> Message:
        refusal = self._keys.refusal(*method.http, headers)
        if refusal is not None:
            raise refusal
        traces = self._parts.traces
        if traces is None or is_under(method.http[1], PROBE):
            return await method.answer(self._parts, asked, call)
        with traces.call(method.route, headers, call.request_id):
            return await method.answer(self._parts, asked, call)


def _as_bytes(name: str, value: str | bytes) -> tuple[bytes, bytes]:
    return name.encode(), value if isinstance(value, bytes) else value.encode()


def _given_id(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    return next((value for name, value in headers if name == HEADER and ACCEPTED_ID.fullmatch(value)), None)


def _trailing(error: LowfirstError) -> tuple[tuple[str, str], ...]:
    """Trailing metadata: the error code, and when to retry."""
    told = (("error-code", error.code),)
    return (*told, ("retry-after", str(error.retry_after_seconds))) if isinstance(error, Busy) else told


def _taken(host: str, port: int, why: str) -> InvalidOption:
    return InvalidOption(PORT, port, f"a free port at {host} ({why})")
