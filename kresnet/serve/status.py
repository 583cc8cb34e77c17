"""Why a request is refused: one list of reasons for HTTP and gRPC alike.

The HTTP codes are those that TensorFlow Serving answers for the same canonical codes
(model_servers/http_server.cc, ToHTTPStatusCode); what it has no word for is marked.
"""

from __future__ import annotations

from enum import Enum


class Status(Enum):
    """A reason, with its HTTP status and the name of its gRPC status."""

    INVALID_ARGUMENT = (400, "INVALID_ARGUMENT")
    FAILED_PRECONDITION = (400, "FAILED_PRECONDITION")
    UNAUTHENTICATED = (401, "UNAUTHENTICATED")
    PERMISSION_DENIED = (403, "PERMISSION_DENIED")
    NOT_FOUND = (404, "NOT_FOUND")
    METHOD_NOT_ALLOWED = (405, "UNIMPLEMENTED")  # HTTP only
    SLOW_BODY = (408, "DEADLINE_EXCEEDED")  # HTTP only
    TOO_LARGE = (413, "RESOURCE_EXHAUSTED")  # HTTP only; gRPC itself refuses long messages
    UNSUPPORTED_MEDIA = (415, "INVALID_ARGUMENT")  # HTTP only
    CANCELLED = (499, "CANCELLED")
    INTERNAL = (500, "INTERNAL")
    UNIMPLEMENTED = (501, "UNIMPLEMENTED")
    UNAVAILABLE = (503, "UNAVAILABLE")
    DEADLINE_EXCEEDED = (504, "DEADLINE_EXCEEDED")

    @property
    def http(self) -> int:
        """The HTTP status."""
        return self.value[0]

    @property
    def grpc(self) -> str:
        """The name of the member of `grpc.StatusCode`."""
        return self.value[1]


class RequestError(Exception):
    """A request that is not answered; the client is told the reason.

    Args:
        status: The reason.
        message: One sentence for the client; it never quotes image content.
        retry_after_s: When another try makes sense; None where it never does.
    """

    def __init__(self, status: Status, message: str, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.retry_after_s = retry_after_s


def invalid(message: str) -> RequestError:
    """Return the error of a request that no server could answer."""
    return RequestError(Status.INVALID_ARGUMENT, message)


def overloaded(message: str) -> RequestError:
    """Return the error of a request that may be sent again in a second."""
    return RequestError(Status.UNAVAILABLE, message, retry_after_s=1)
