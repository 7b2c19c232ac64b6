"""What goes wrong, as exceptions: one class a status, with what the server said about it."""

from dataclasses import dataclass

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError

from candlewick import details_pb2 as details
from candlewick.v1 import chat_pb2 as chat

_TRAILER = "grpc-status-details-bin"


@dataclass(frozen=True)
class FieldViolation:
    """A field of the request that is wrong, by its path, and why."""

    field: str
    description: str


@dataclass(frozen=True)
class Details:
    """What a status carries beside its message; empty where the server said nothing."""

    reason: str = ""
    field_violations: tuple[FieldViolation, ...] = ()
    quota_violations: tuple[str, ...] = ()
    #: Seconds after which to try again.
    retry_after: float | None = None
    metadata: tuple[tuple[str, str], ...] = ()


class CandlewickError(Exception):
    """A call, or one turn of a session, failed."""

    def __init__(self, code: grpc.StatusCode, message: str, details: Details = Details()) -> None:
        fields = [f"{one.field} {one.description}" for one in details.field_violations if one.field not in message]
        super().__init__(f"{code.name}: {message}" + (f" ({'; '.join(fields)})" if fields else ""))
        self.code = code
        self.message = message
        self.details = details
        #: Of a session's turn that failed: its index.
        self.turn_index: int | None = None
        #: Of a session: the client's event that it answers, by its name in `SessionRequest`.
        self.event = ""

    @property
    def field_violations(self) -> tuple[FieldViolation, ...]:
        """The fields at fault."""
        return self.details.field_violations

    @property
    def retry_after(self) -> float | None:
        """Seconds after which the server thinks that a retry is worth while."""
        return self.details.retry_after


class InvalidArgument(CandlewickError):
    """A field is wrong: `field_violations` says which."""


class NotFound(CandlewickError):
    """No such model, stream or session (any more)."""


class FailedPrecondition(CandlewickError):
    """Not in this state: no such capability of the model, a turn under way, a full context."""


class Unauthenticated(CandlewickError):
    """No key, or a wrong one."""


class PermissionDenied(CandlewickError):
    """Somebody else's, or not for this key."""


class ResourceExhausted(CandlewickError):
    """A queue or a quota is full: `retry_after` says when to come back."""


class DeadlineExceeded(CandlewickError):
    """The deadline has passed, or cannot be met."""


class Unavailable(CandlewickError):
    """No server, or one that loads or goes down."""


class Aborted(CandlewickError):
    """Ended by a policy: a slow reader, or somebody else who took the stream over."""


class DataLoss(CandlewickError):
    """The events asked for are no longer kept."""


class Cancelled(CandlewickError):
    """Cancelled, by this side or the other."""


class Unimplemented(CandlewickError):
    """The server does not offer this."""


class Internal(CandlewickError):
    """The server's fault."""


_CLASSES: dict[grpc.StatusCode, type[CandlewickError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.ABORTED: Aborted,
    grpc.StatusCode.DATA_LOSS: DataLoss,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
    grpc.StatusCode.INTERNAL: Internal,
}
_CODES = {code.value[0]: code for code in grpc.StatusCode}


def of_code(code: grpc.StatusCode, message: str, details: Details = Details()) -> CandlewickError:
    """The exception of a status."""
    return _CLASSES.get(code, CandlewickError)(code, message, details)


def of_rpc(error: grpc.RpcError) -> CandlewickError:
    """The exception of a failed call, `google.rpc` details decoded. Details that cannot be read are left out."""
    if not isinstance(error, (grpc.Call, grpc.aio.AioRpcError)):
        return of_code(grpc.StatusCode.UNKNOWN, str(error))
    trailers = error.trailing_metadata() or ()
    packed = next((value for key, value in trailers if key == _TRAILER), b"")
    return of_code(error.code(), error.details() or "", _decoded(packed if isinstance(packed, bytes) else b""))


def of_session(error: chat.SessionError) -> CandlewickError:
    """The exception of what went wrong in a session that goes on."""
    fields = tuple(FieldViolation(one.field, one.description) for one in error.fields)
    retry_after = error.retry_after_ms / 1000 if error.HasField("retry_after_ms") else None
    details = Details(field_violations=fields, retry_after=retry_after)
    made = of_code(_CODES.get(error.code, grpc.StatusCode.UNKNOWN), error.message, details)
    made.turn_index = error.turn_index if error.HasField("turn_index") else None
    made.event = error.event
    return made


def _decoded(packed: bytes) -> Details:
    status = details.Status()
    try:
        status.ParseFromString(packed)
        return _gathered(list(status.details))
    except DecodeError:
        return Details()


def _gathered(packed: list[AnyMessage]) -> Details:
    """The details that a status carries, by the last part of their types' names."""
    bad, retry, info, quota = details.BadRequest(), details.RetryInfo(), details.ErrorInfo(), details.QuotaFailure()
    kinds = {"BadRequest": bad, "RetryInfo": retry, "ErrorInfo": info, "QuotaFailure": quota}
    for one in packed:
        kind = kinds.get(one.type_url.rpartition("google.rpc.")[2])
        if kind is not None:
            kind.ParseFromString(one.value)
    delay = retry.retry_delay
    return Details(
        reason=info.reason,
        field_violations=tuple(FieldViolation(one.field, one.description) for one in bad.field_violations),
        quota_violations=tuple(one.description for one in quota.violations),
        retry_after=delay.seconds + delay.nanos / 1e9 if retry.HasField("retry_delay") else None,
        metadata=tuple(info.metadata.items()),
    )
