"""The error tree: every failure a client can see, with its HTTP status, type and code.

Raise these anywhere; `api/` turns them into OpenAI's error envelope in one place. It knows nothing
of HTTP frameworks. Messages are written for the person who reads them: what is wrong, what to do;
they never hold a path, a traceback or a key.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec


class ErrorInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """An error as it crosses the worker's pipe and as the wire formats render it.

    `retry_after` is in seconds. `retry` False tells SDKs not to repeat a 5xx (`x-should-retry`).
    `details` are extra members of the envelope, such as `n_prompt_tokens`.
    """

    message: str
    status: int = 500
    type: str = "server_error"
    code: str | None = "internal_error"
    param: str | None = None
    retry_after: int | None = None
    retry: bool = True
    details: dict[str, int | str] = {}


def printable(text: str, n: int, instead: str = " ") -> str:
    """The first `n` characters of a text, with `instead` for those that cannot be printed."""
    return "".join(c if c.isprintable() else instead for c in text[:n])


class ServerError(Exception):
    """Base of all errors a client may see. Subclasses fix status, type, code and retry advice."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str] = "internal_error"
    retry_after: ClassVar[int | None] = None
    retry: ClassVar[bool] = True

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        param: str | None = None,
        code: str | None = None,
        details: dict[str, int | str] | None = None,
    ) -> None:
        super().__init__(message)
        self.info = ErrorInfo(
            message=message,
            status=status or self.status,
            type=self.type,
            code=code or self.code,
            param=param,
            retry_after=self.retry_after,
            retry=self.retry,
            details=details or {},
        )


class ModelFailed(ServerError):
    """A batch with this request could not be computed, or its answer not be read."""

    def __init__(self) -> None:
        super().__init__("The model failed on this request; the server's log says more.")


class RemoteError(ServerError):
    """An error that a worker reported, raised again in the API process."""

    def __init__(self, info: ErrorInfo) -> None:
        Exception.__init__(self, info.message)
        self.info = info


class InvalidRequest(ServerError):
    """The request is wrong; `code` says how (invalid_json, invalid_type, invalid_value, ...)."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_value"
    retry = False


class InvalidSchema(InvalidRequest):
    """A JSON Schema that is wrong, or that no answer can be held to."""

    code = "invalid_json_schema"

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message, param=param)


class RequestCancelled(InvalidRequest):
    """Somebody else told the server to stop answering. A 4xx, so that SDKs do not repeat it."""

    code = "request_cancelled"


class UnsupportedParameter(InvalidRequest):
    """A known field that this server does not honour: refused, never ignored."""

    code = "unsupported_parameter"


class RequestTooLarge(InvalidRequest):
    """The body is longer than the server accepts."""

    status = 413
    code = "request_too_large"


class UnsupportedMediaType(InvalidRequest):
    """The body is not declared as plain JSON. Other types would let web pages post blindly."""

    status = 415
    code = "unsupported_media_type"


class ContextLengthExceeded(InvalidRequest):
    """The prompt is longer than the context. Message in OpenAI's words: agents match on it.

    `at_least`: the prompt has not been tokenized, as no fewer tokens can make so long a text.
    """

    code = "context_length_exceeded"

    def __init__(
        self, n_prompt_tokens: int, n_ctx: int, *, param: str = "messages", at_least: bool = False
    ) -> None:
        resulted = f"resulted in {'at least ' if at_least else ''}{n_prompt_tokens} tokens"
        super().__init__(
            f"This model's maximum context length is {n_ctx} tokens. However, your {param} "
            f"{resulted}. Please reduce the length of the {param}.",
            param=param,
            details={"n_prompt_tokens": n_prompt_tokens, "n_ctx": n_ctx},
        )


class RequestTooComplex(InvalidRequest):
    """Preparing the request takes too long. Repeating it would take as long."""

    code = "request_too_complex"


class TemplateError(InvalidRequest):
    """The model's chat template refused these messages or could not be rendered."""

    code = "template_error"


class ModelLoadFailed(InvalidRequest):
    """The file is not a model this build can load. 400: repeating the request cannot help."""

    code = "model_load_failed"


class ModelNotFound(ServerError):
    """No such model; the same answer for a missing, a forbidden and a malformed name."""

    status = 404
    type = "invalid_request_error"
    code = "model_not_found"
    retry = False

    def __init__(self, name: str, hint: str = "") -> None:
        shown = printable(name, 128, "?")
        super().__init__(f"The model `{shown}` does not exist.{hint}", param="model")


class WorkerCrashed(ServerError):
    """The worker process died under this request. Not retried: the request may be the cause."""

    code = "worker_crashed"
    retry = False


class CrashesWorker(InvalidRequest):
    """The same request has ended several workers. 400: nobody shall repeat it."""

    code = "request_crashes_worker"


class RateLimitExceeded(ServerError):
    """This API key has its share of the queue; there is room for others."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"
    retry_after = 1


class Unavailable(ServerError):
    """Base of the 503s: the same request can succeed a little later."""

    status = 503
    code = "unavailable"
    retry_after = 1


class QueueFull(Unavailable):
    """More requests are waiting than the queue may hold."""

    code = "queue_full"

    def __init__(
        self, message: str = "Too many requests are waiting. Try again in a moment."
    ) -> None:
        super().__init__(message)


class ModelLoading(Unavailable):
    """The model is being loaded, or none is loaded yet."""

    code = "model_loading"
    retry_after = 2


class InsufficientMemory(Unavailable):
    """The model or its context does not fit into this machine's memory now."""

    code = "insufficient_memory"
    retry_after = 10
    retry = False


class OutOfMemory(Unavailable):
    """The worker was ended for want of memory while it computed."""

    code = "out_of_memory"
    retry_after = 10


class DiskTimeout(Unavailable):
    """A disk that was asked for this request does not answer."""

    code = "disk_timeout"
    retry_after = 10

    def __init__(self, message: str = "A disk does not answer. Try again later.") -> None:
        super().__init__(message)


class ShuttingDown(Unavailable):
    """The server is stopping and takes no new requests."""

    code = "shutting_down"
    retry_after = 5

    def __init__(self, message: str = "The server is shutting down.") -> None:
        super().__init__(message)
