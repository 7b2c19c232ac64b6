"""Client of candlewick, a streaming LLM token server: `Client` blocks, `AsyncClient` awaits.

    with Client("127.0.0.1:50051") as client:
        for text in client.chat_stream("What is candlewick?").text():
            print(text, end="", flush=True)

The messages are those of the contract, `candlewick.v1`; what a conversation needs most is here as well.
"""

from candlewick.aio import AsyncClient, AsyncSession, AsyncStream, AsyncTurn
from candlewick.calls import Retry, StreamLog
from candlewick.client import Client, Stream
from candlewick.errors import (
    Aborted,
    Cancelled,
    CandlewickError,
    DataLoss,
    DeadlineExceeded,
    Details,
    FailedPrecondition,
    FieldViolation,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from candlewick.models import AsyncLoad, AsyncWatch, Load, Watch
from candlewick.session import Session, Turn
from candlewick.v1.chat_pb2 import ChatOptions, ContextPolicy, Lease, Message, Role, Tool
from candlewick.v1.common_pb2 import Delta, FinishReason, RequestOptions, SamplingParams, StructuredOutputs
from candlewick.v1.models_pb2 import LoadProgress, Model, ModelState

__all__ = [
    "Aborted",
    "AsyncClient",
    "AsyncLoad",
    "AsyncSession",
    "AsyncStream",
    "AsyncTurn",
    "AsyncWatch",
    "Cancelled",
    "CandlewickError",
    "ChatOptions",
    "Client",
    "ContextPolicy",
    "DataLoss",
    "DeadlineExceeded",
    "Delta",
    "Details",
    "FailedPrecondition",
    "FieldViolation",
    "FinishReason",
    "Internal",
    "InvalidArgument",
    "Lease",
    "Load",
    "LoadProgress",
    "Message",
    "Model",
    "ModelState",
    "NotFound",
    "PermissionDenied",
    "RequestOptions",
    "ResourceExhausted",
    "Retry",
    "Role",
    "SamplingParams",
    "Session",
    "Stream",
    "StreamLog",
    "StructuredOutputs",
    "Tool",
    "Turn",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Watch",
]
