"""What errors carry, and what is tried again, without a server."""

import grpc
import grpc.aio
import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from candlewick import CandlewickError, InvalidArgument, ResourceExhausted, Retry, Unavailable
from candlewick import details_pb2 as details
from candlewick.calls import Patience, StreamLog
from candlewick.errors import Details, of_rpc
from candlewick.v1 import common_pb2 as common
from candlewick.v1 import generation_pb2 as generation


def failed(code: grpc.StatusCode, packed: bytes) -> CandlewickError:
    trailers = grpc.aio.Metadata(("grpc-status-details-bin", packed))
    return of_rpc(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailers, details="no"))


def packed(**kinds: Message) -> bytes:
    made = [Any(type_url=f"type.googleapis.com/google.rpc.{kind}", value=one.SerializeToString()) for kind, one in kinds.items()]
    return details.Status(code=8, details=made).SerializeToString()


def test_a_full_queue_says_when_to_come_back() -> None:
    data = packed(
        RetryInfo=details.RetryInfo(retry_delay=Duration(seconds=1, nanos=250_000_000)),
        QuotaFailure=details.QuotaFailure(violations=[details.QuotaFailure.Violation(description="64 wait")]),
        ErrorInfo=details.ErrorInfo(reason="QUEUE_FULL", metadata={"a": "b"}),
        SomethingNew=details.ErrorInfo(),
    )
    error = failed(grpc.StatusCode.RESOURCE_EXHAUSTED, data)
    assert isinstance(error, ResourceExhausted) and error.retry_after == 1.25
    assert error.details == Details("QUEUE_FULL", (), ("64 wait",), 1.25, (("a", "b"),))


def test_fields_that_the_message_does_not_name_stand_in_the_text() -> None:
    violation = details.BadRequest.FieldViolation(field="prompt", description="is empty")
    error = failed(grpc.StatusCode.INVALID_ARGUMENT, packed(BadRequest=details.BadRequest(field_violations=[violation])))
    assert isinstance(error, InvalidArgument) and str(error) == "INVALID_ARGUMENT: no (prompt is empty)"


def test_details_that_cannot_be_read_are_left_out() -> None:
    assert failed(grpc.StatusCode.UNAVAILABLE, b"\xff\xff").details == Details()


def test_only_what_is_unavailable_is_tried_again_and_not_before_the_server_says() -> None:
    patience = Patience(Retry(attempts=2, first_delay=0.01), None)
    with pytest.raises(InvalidArgument):
        patience.pause(InvalidArgument(grpc.StatusCode.INVALID_ARGUMENT, "no"))
    patience.heard()
    busy = Unavailable(grpc.StatusCode.UNAVAILABLE, "loading", Details(retry_after=3.0))
    assert patience.pause(busy) == 3.0
    with pytest.raises(Unavailable):
        patience.pause(busy)


def test_nobody_waits_past_the_deadline() -> None:
    patience = Patience(Retry(), 2.0)
    with pytest.raises(Unavailable):
        patience.pause(Unavailable(grpc.StatusCode.UNAVAILABLE, "loading", Details(retry_after=3.0)))


def test_a_stream_that_has_begun_has_a_way_back_only_where_it_is_resumable() -> None:
    log = StreamLog()
    assert log.way_back() is None
    log.take(generation.GenerateStreamResponse(seq=1, started=common.Started(request_id="one")))
    with pytest.raises(LookupError):
        log.way_back()
    log.take(generation.GenerateStreamResponse(seq=1, started=common.Started(stream_id="two")))
    log.take(generation.GenerateStreamResponse(seq=2, delta=common.Delta(text="a")))
    back = log.way_back()
    assert back is not None and (back.stream_id, back.after_seq) == ("two", 2)
