"""Every error that Sapwood raises on purpose.

    SapwoodError
    ├── UserError (also a ValueError)     what a person typed or sent is wrong: HTTP 4xx, exit code 2
    │   ├── RequestError                  one request: names the field
    │   │   └── LimitReached              its key has taken what it may: HTTP 429
    │   ├── GrammarError                  what an output is to match cannot be used; says why, not in which field
    │   ├── ConfigError                   an option or a pair of options
    │   └── ModelError                    a model file or config that cannot be used
    ├── GenerationFailed                  one request failed inside; the others go on
    ├── DeadlinePassed                    one request has not finished in the time that it had: HTTP 504
    └── Unavailable                       not now: HTTP 503, with the seconds after which to try again
        ├── EngineDead                    the engine process is gone; in-flight requests end with this
        ├── Overloaded                    too much is waiting already
        └── Stopping                      the server ends, and takes no more requests

Lost is none of these: what computes is gone, and whoever drives it ends.

Anything else that escapes is a bug and is reported with its traceback.
"""

from __future__ import annotations


class SapwoodError(Exception):
    """The root, so that a caller can catch everything that is meant to be caught."""


class UserError(SapwoodError, ValueError):
    """The caller can mend it; the message says how."""


class RequestError(UserError):
    """A request that cannot be served.

    `param` is the field as the caller spelled it, `status` the HTTP status, and `code` the machine-readable reason
    of the OpenAI error shape.
    """

    def __init__(self, message: str, *, param: str | None = None, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.status = status
        self.code = code


class LimitReached(RequestError):
    """A key has used up what it may take. `retry_after` are the seconds until there is enough again, where that is known."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message, status=429, code="rate_limit_exceeded")
        self.retry_after = retry_after


class GrammarError(UserError):
    """A schema, an expression or a grammar that is wrong, not supported, or too much work."""


class ConfigError(UserError):
    """An option that cannot work, alone or with another."""


class ModelError(UserError):
    """A model that cannot be loaded: missing, corrupt or not supported."""


class GenerationFailed(SapwoodError):
    """The engine gave one request up; the others go on."""


class DeadlinePassed(SapwoodError):
    """A request has not finished in the time that it, or its server, had set for it."""


class Unavailable(SapwoodError):
    """Nothing is wrong with the request; `retry_after` are the seconds after which it may be served, where that is known."""

    def __init__(self, message: str = "", *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class EngineDead(Unavailable):
    """The engine process has ended. Carries its last words where there are any, and how long until there is another."""


class Overloaded(Unavailable):
    """The queue is full; try again later."""


class Stopping(Unavailable):
    """The server ends; another one may be there soon."""


class Lost(RuntimeError):
    """Something that computes has ended or stands still: nothing that follows can succeed."""
