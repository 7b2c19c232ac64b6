// Talks to a candlewick server: a chat that streams, a session of two turns, and what a refused request carries.
//
//	clients/go/build.sh && clients/go/build/example [ADDRESS]
//
// Ends with 0 where everything came as it should.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"
	"strings"
	"time"

	candlewick "candlewick/v1"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

func main() {
	address := "127.0.0.1:50051"
	if len(os.Args) > 1 {
		address = os.Args[1]
	}
	connection, err := grpc.Dial(address, grpc.WithInsecure())
	check(err)
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if key := os.Getenv("CANDLEWICK_API_KEY"); key != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+key)
	}

	chat := candlewick.NewChatClient(connection)
	stream(ctx, chat)
	session(ctx, chat)
	refusal(ctx, chat)
}

func sampling(temperature float32) *candlewick.SamplingParams {
	return &candlewick.SamplingParams{Temperature: proto.Float32(temperature), MaxTokens: proto.Uint32(32)}
}

func question(temperature float32) *candlewick.CompleteStreamRequest {
	return &candlewick.CompleteStreamRequest{
		Messages: []*candlewick.Message{{Role: candlewick.Role_ROLE_USER, Content: "What is candlewick?"}},
		Options:  &candlewick.RequestOptions{Sampling: sampling(temperature)},
	}
}

// A chat, delta by delta. Cancelling the context at any point cancels the request: the server stops at once.
func stream(ctx context.Context, chat candlewick.ChatClient) {
	events, err := chat.CompleteStream(ctx, question(0))
	check(err)
	text, deltas, seq := strings.Builder{}, 0, uint64(0)
	var finished *candlewick.Finished
	for {
		event, err := events.Recv()
		if err == io.EOF {
			break
		}
		check(err)
		seq++
		if event.Seq != seq {
			log.Fatalf("event %d where %d should be", event.Seq, seq)
		}
		if delta := event.GetDelta(); delta != nil {
			text.WriteString(delta.Text)
			deltas++
		}
		if event.GetFinished() != nil {
			finished = event.GetFinished()
		}
	}
	if finished == nil || text.Len() == 0 {
		log.Fatal("the stream did not say how it ended, or nothing at all")
	}
	fmt.Printf("stream: %d deltas, %d tokens, %s: %s\n",
		deltas, finished.Usage.CompletionTokens, finished.Finish.Reason, text.String())
}

// A session of two turns: the second computes little more than what is new.
func session(ctx context.Context, chat candlewick.ChatClient) {
	talk, err := chat.Session(ctx)
	check(err)
	say := func(request *candlewick.SessionRequest) { check(talk.Send(request)) }
	say(&candlewick.SessionRequest{Event: &candlewick.SessionRequest_Open{Open: &candlewick.SessionOpen{
		System:  proto.String("You tell stories."),
		Options: &candlewick.RequestOptions{Sampling: sampling(0)},
	}}})
	turn := func(content string) *candlewick.TurnDone {
		say(&candlewick.SessionRequest{Event: &candlewick.SessionRequest_User{User: &candlewick.UserTurn{Content: content}}})
		for {
			event, err := talk.Recv()
			check(err)
			if failed := event.GetError(); failed != nil {
				log.Fatalf("the turn failed: %s", failed.Message)
			}
			if done := event.GetTurnDone(); done != nil {
				return done
			}
		}
	}
	first := turn("Once upon a time there was a fox.")
	second := turn("And then?")
	known := first.Usage.PromptTokens + first.Usage.CompletionTokens
	if second.TurnIndex != 1 || second.ComputedTokens > second.Usage.PromptTokens-known+17 {
		log.Fatalf("the second turn computed more than it brought: %v", second)
	}
	say(&candlewick.SessionRequest{Event: &candlewick.SessionRequest_Close{Close: &candlewick.CloseSession{}}})
	for {
		if _, err := talk.Recv(); err == io.EOF {
			break
		} else {
			check(err)
		}
	}
	fmt.Printf("session: turn 2 had %d prompt tokens and computed %d\n", second.Usage.PromptTokens, second.ComputedTokens)
}

// What a refused request carries: which field is wrong.
func refusal(ctx context.Context, chat candlewick.ChatClient) {
	events, err := chat.CompleteStream(ctx, question(-1))
	check(err)
	_, err = events.Recv()
	refused := status.Convert(err)
	if refused.Code() != codes.InvalidArgument {
		log.Fatalf("a wrong temperature gave %v", err)
	}
	for _, detail := range refused.Details() {
		if bad, ok := detail.(*errdetails.BadRequest); ok && len(bad.FieldViolations) > 0 {
			fmt.Printf("refusal: %s: %s %s\n", refused.Code(), bad.FieldViolations[0].Field, bad.FieldViolations[0].Description)
			return
		}
	}
	log.Fatalf("no field is named: %v", refused.Details())
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
