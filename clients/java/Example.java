import candlewick.v1.ChatGrpc;
import candlewick.v1.ChatOuterClass.CloseSession;
import candlewick.v1.ChatOuterClass.CompleteStreamRequest;
import candlewick.v1.ChatOuterClass.CompleteStreamResponse;
import candlewick.v1.ChatOuterClass.Message;
import candlewick.v1.ChatOuterClass.Role;
import candlewick.v1.ChatOuterClass.SessionOpen;
import candlewick.v1.ChatOuterClass.SessionRequest;
import candlewick.v1.ChatOuterClass.SessionResponse;
import candlewick.v1.ChatOuterClass.TurnDone;
import candlewick.v1.ChatOuterClass.UserTurn;
import candlewick.v1.Common.Finished;
import candlewick.v1.Common.RequestOptions;
import candlewick.v1.Common.SamplingParams;
import com.google.rpc.BadRequest;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.StatusRuntimeException;
import io.grpc.netty.NettyChannelBuilder;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.MetadataUtils;
import io.grpc.stub.StreamObserver;
import java.util.Iterator;
import java.util.concurrent.ArrayBlockingQueue;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.TimeUnit;

/**
 * Talks to a candlewick server: a chat that streams, a session of two turns, and what a refused request carries.
 *
 * <pre>clients/java/build.sh && clients/java/build.sh run [ADDRESS]</pre>
 *
 * Ends with 0 where everything came as it should.
 */
public final class Example {
  private static final int WAIT_SECONDS = 120;

  public static void main(String[] arguments) throws Exception {
    String address = arguments.length > 0 ? arguments[0] : "127.0.0.1:50051";
    ManagedChannel channel = NettyChannelBuilder.forTarget(address).usePlaintext().build();
    try {
      Metadata headers = new Metadata();
      String key = System.getenv("CANDLEWICK_API_KEY");
      if (key != null) {
        headers.put(Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER), "Bearer " + key);
      }
      stream(MetadataUtils.attachHeaders(ChatGrpc.newBlockingStub(channel), headers));
      session(MetadataUtils.attachHeaders(ChatGrpc.newStub(channel), headers));
      refusal(MetadataUtils.attachHeaders(ChatGrpc.newBlockingStub(channel), headers));
    } finally {
      channel.shutdown().awaitTermination(10, TimeUnit.SECONDS);
    }
  }

  private static RequestOptions options(float temperature) {
    SamplingParams sampling = SamplingParams.newBuilder().setTemperature(temperature).setMaxTokens(32).build();
    return RequestOptions.newBuilder().setSampling(sampling).build();
  }

  private static CompleteStreamRequest question(float temperature) {
    Message message = Message.newBuilder().setRole(Role.ROLE_USER).setContent("What is candlewick?").build();
    return CompleteStreamRequest.newBuilder().addMessages(message).setOptions(options(temperature)).build();
  }

  /** A chat, delta by delta. */
  private static void stream(ChatGrpc.ChatBlockingStub chat) {
    StringBuilder text = new StringBuilder();
    Finished finished = null;
    int deltas = 0;
    long seq = 0;
    Iterator<CompleteStreamResponse> events =
        chat.withDeadlineAfter(WAIT_SECONDS, TimeUnit.SECONDS).completeStream(question(0));
    while (events.hasNext()) {
      CompleteStreamResponse event = events.next();
      check(event.getSeq() == ++seq, "event " + event.getSeq() + " where " + seq + " should be");
      if (event.hasDelta()) {
        text.append(event.getDelta().getText());
        deltas++;
      } else if (event.hasFinished()) {
        finished = event.getFinished();
      }
    }
    check(finished != null && text.length() > 0, "the stream did not say how it ended, or nothing at all");
    System.out.printf(
        "stream: %d deltas, %d tokens, %s: %s%n",
        deltas, finished.getUsage().getCompletionTokens(), finished.getFinish().getReason(), text);
  }

  /** A session of two turns: the second computes little more than what is new. */
  private static void session(ChatGrpc.ChatStub chat) throws InterruptedException {
    Ear ear = new Ear();
    StreamObserver<SessionRequest> talk = chat.withDeadlineAfter(WAIT_SECONDS, TimeUnit.SECONDS).session(ear);
    SessionOpen open = SessionOpen.newBuilder().setSystem("You tell stories.").setOptions(options(0)).build();
    talk.onNext(SessionRequest.newBuilder().setOpen(open).build());
    TurnDone first = turn(talk, ear, "Once upon a time there was a fox.");
    TurnDone second = turn(talk, ear, "And then?");
    int known = first.getUsage().getPromptTokens() + first.getUsage().getCompletionTokens();
    int fresh = second.getUsage().getPromptTokens() - known;
    check(second.getTurnIndex() == 1 && second.getComputedTokens() <= fresh + 17, "too much was computed: " + second);
    talk.onNext(SessionRequest.newBuilder().setClose(CloseSession.getDefaultInstance()).build());
    talk.onCompleted();
    while (ear.next() != null) {}
    System.out.printf(
        "session: turn 2 had %d prompt tokens and computed %d%n",
        second.getUsage().getPromptTokens(), second.getComputedTokens());
  }

  private static TurnDone turn(StreamObserver<SessionRequest> talk, Ear ear, String content) throws InterruptedException {
    talk.onNext(SessionRequest.newBuilder().setUser(UserTurn.newBuilder().setContent(content)).build());
    for (SessionResponse event = ear.next(); event != null; event = ear.next()) {
      check(!event.hasError(), "the turn failed: " + event.getError().getMessage());
      if (event.hasTurnDone()) {
        return event.getTurnDone();
      }
    }
    throw new IllegalStateException("the session ended in the middle of a turn");
  }

  /** What a refused request carries: which field is wrong. */
  private static void refusal(ChatGrpc.ChatBlockingStub chat) throws Exception {
    try {
      chat.withDeadlineAfter(WAIT_SECONDS, TimeUnit.SECONDS).completeStream(question(-1)).next();
    } catch (StatusRuntimeException refused) {
      com.google.rpc.Status status = StatusProto.fromThrowable(refused);
      for (com.google.protobuf.Any detail : status.getDetailsList()) {
        if (detail.is(BadRequest.class)) {
          BadRequest.FieldViolation wrong = detail.unpack(BadRequest.class).getFieldViolations(0);
          System.out.printf(
              "refusal: %s: %s %s%n", refused.getStatus().getCode(), wrong.getField(), wrong.getDescription());
          return;
        }
      }
      throw new IllegalStateException("no field is named: " + status);
    }
    throw new IllegalStateException("a wrong temperature was not refused");
  }

  private static void check(boolean holds, String otherwise) {
    if (!holds) {
      throw new IllegalStateException(otherwise);
    }
  }

  /** What a session says, one event after the other; the queue is full when nobody listens, and the server waits. */
  private static final class Ear implements StreamObserver<SessionResponse> {
    private static final Object END = new Object();
    private final BlockingQueue<Object> events = new ArrayBlockingQueue<>(64);

    SessionResponse next() throws InterruptedException {
      Object event = events.poll(WAIT_SECONDS, TimeUnit.SECONDS);
      if (event instanceof Throwable) {
        throw new IllegalStateException((Throwable) event);
      }
      check(event != null, "nothing came for " + WAIT_SECONDS + " seconds");
      return event == END ? null : (SessionResponse) event;
    }

    private void put(Object event) {
      try {
        events.put(event);
      } catch (InterruptedException interrupted) {
        Thread.currentThread().interrupt();
      }
    }

    @Override
    public void onNext(SessionResponse event) {
      put(event);
    }

    @Override
    public void onError(Throwable error) {
      put(error);
    }

    @Override
    public void onCompleted() {
      put(END);
    }
  }
}
