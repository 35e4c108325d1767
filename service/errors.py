"""Every error this project raises, along the way of the data.

    LowfirstError
    ├── InvalidOption         422   a value outside its bound: a command's option, a field of a request
    ├── InvalidImage          400   bytes that are no readable image
    │   ├── UnsupportedImage  415   not an image, or of a format that is not read
    │   └── ImageTooLarge     413   more bytes or pixels than the limit
    ├── BadRequest            400   a body that cannot be parsed
    ├── Unauthorized          401   no key, or a wrong one
    ├── Forbidden             403   a key that does not allow it, or a change that no key allows
    ├── UnsupportedBody       415   a content type that is not read
    ├── NotFound              404   a model, a version, a file
    ├── BrokenModel           500   a store entry that cannot be trusted or read
    ├── DataError             422   a data set that cannot be trained or evaluated with
    ├── RequestTimeout        408   a request that did not arrive in time
    ├── ConfigConflict        412   the runtime config changed since it was read
    ├── Conflict              409   a change that what is in force rules out
    ├── Busy                  429   a limit on work in flight is reached
    │   └── TooManyConnections 503  more are open than are served
    ├── HeadTooLarge          431   a request's head has more bytes than the limit
    ├── ClientLeft            499   nobody is there any more to read the answer
    ├── StoreUnavailable      503   the shared state does not answer
    ├── Draining              503   the server is stopping, or not ready yet
    ├── PreparationEnded      503   the process that prepared a model was killed
    ├── DeadlinePassed        504   before any answer existed
    ├── DeviceFailed          500   the network could not be run
    └── DeploymentFailed      500   replicas that do not come up on a cluster

Each class knows its HTTP status and its stable ``code``. A message names the field, the value and the bound.
"""

from __future__ import annotations

from copy import copy
from typing import Any, ClassVar, Self


class LowfirstError(Exception):
    """Base of the tree. ``field``, ``value`` and ``bound`` are None if they do not apply."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"

    def __init__(self, message: str, *, field: str | None = None, value: Any = None, bound: Any = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.value = value
        self.bound = bound

    def about(self, what: str) -> Self:
        """A copy of the error with the prefix ``what``; a copy, because others may hold this object."""
        told = copy(self)
        told.message = f"{what}: {self.message}"
        told.args = (told.message,)
        return told

    def __copy__(self) -> Self:
        twin = type(self).__new__(type(self))  # constructors differ
        vars(twin).update(vars(self))
        return twin


class InvalidOption(LowfirstError):
    """``field`` has ``value``, which is not ``bound`` ("between 0 and 1", "one of ...")."""

    status = 422
    code = "invalid_field"

    def __init__(self, field: str, value: Any, bound: str) -> None:
        nothing = "unset" if field.startswith("LOWFIRST_") else "null"
        shown = nothing if value is None else repr(value)
        super().__init__(f"{field} is {shown}; it must be {bound}", field=field, value=value, bound=bound)


class InvalidImage(LowfirstError):
    """Bytes that are truncated, corrupt or otherwise not a readable image."""

    status = 400
    code = "invalid_image"


class UnsupportedImage(InvalidImage):
    """Bytes of an unsupported image format."""

    status = 415
    code = "unsupported_image"


class ImageTooLarge(InvalidImage):
    """Too many bytes or pixels."""

    status = 413
    code = "image_too_large"


class BadRequest(LowfirstError):
    """A body that cannot be parsed, or lacks a required part."""

    status = 400
    code = "bad_request"


class Unauthorized(LowfirstError):
    """The request has no key, or a wrong one."""

    status = 401
    code = "unauthorized"


class Forbidden(LowfirstError):
    """The key does not allow this, or no key does."""

    status = 403
    code = "forbidden"


class UnsupportedBody(LowfirstError):
    """An unsupported content type."""

    status = 415
    code = "unsupported_body"


class NotFound(LowfirstError):
    """Something named that does not exist."""

    status = 404
    code = "not_found"


class BrokenModel(LowfirstError):
    """A model folder with a missing, corrupt or foreign file."""

    code = "broken_model"


class DataError(LowfirstError):
    """A data set with a missing folder, an empty class or classes that do not match."""

    status = 422
    code = "invalid_data"


class RequestTimeout(LowfirstError):
    """A request whose head or body did not arrive in time; its connection is closed."""

    status = 408
    code = "request_timeout"


class ConfigConflict(LowfirstError):
    """The runtime config has another version than the caller expected."""

    status = 412
    code = "config_conflict"


class Conflict(LowfirstError):
    """A change that conflicts with the current state: a second trial, or ending a trial when there is none."""

    status = 409
    code = "conflict"


class Busy(LowfirstError):
    """A limit on work in flight is reached; ``retry_after_seconds`` says when to retry."""

    status = 429
    code = "busy"

    def __init__(self, message: str, *, retry_after_seconds: int = 1, **named: Any) -> None:
        super().__init__(message, **named)
        self.retry_after_seconds = retry_after_seconds


class TooManyConnections(Busy):
    """More connections are open than the limit; this one is closed."""

    status = 503
    code = "too_many_connections"

    def __init__(self, connections: int, limit: float) -> None:
        super().__init__(
            f"{connections} connections are open; the limit is {limit}",
            field="connections",
            value=connections,
            bound=limit,
        )


class HeadTooLarge(LowfirstError):
    """A request's head exceeds the limit; its connection is closed."""

    status = 431
    code = "head_too_large"


class ClientLeft(LowfirstError):
    """The client disconnected before its body was complete or its answer was ready. Status 499, as in nginx, is only
    counted."""

    status = 499
    code = "client_left"

    def __init__(self) -> None:
        super().__init__("the client disconnected before the answer")


class StoreUnavailable(LowfirstError):
    """The shared state does not answer, or refuses. Serving continues with the last known config."""

    status = 503
    code = "store_unavailable"


class Draining(LowfirstError):
    """The server is stopping, or not ready yet."""

    status = 503
    code = "unavailable"


class PreparationEnded(LowfirstError):
    """The process that prepared a model was killed. Nothing has changed, and it may be tried again."""

    status = 503
    code = "unavailable"


class DeadlinePassed(LowfirstError):
    """The deadline passed before any answer existed."""

    status = 504
    code = "deadline_passed"


class DeviceFailed(LowfirstError):
    """The network raised an exception; the cause is the image or the device."""

    code = "device_failed"


class DeploymentFailed(LowfirstError):
    """A deployment on a cluster does not start, or Ray is not installed."""

    code = "deployment_failed"
