// Opens many streams at once over few connections and says how evenly their tokens come.
//
//	clients/go/build.sh && clients/go/build/manystreams -connections 1 -streams 2000
//
// Prints a line of figures for all of the streams' lives, and one for the time in which every stream was running. A gap is
// the time between two messages of one stream. Ends with 1 where a stream failed, or, with -most, where the longest gap is
// more than so many median gaps. Against the loopback interface alone; at most 10,000 streams and 10 minutes.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	candlewick "candlewick/v1"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

var (
	address     = flag.String("address", "127.0.0.1:50051", "the server's")
	connections = flag.Int("connections", 1, "connections to share the streams among")
	streams     = flag.Int("streams", 2000, "streams at once")
	tokens      = flag.Uint("tokens", 64, "tokens a stream")
	patience    = flag.Duration("timeout", 5*time.Minute, "for all of it")
	most        = flag.Float64("most", 0, "fail where the longest gap is more than so many median gaps; 0 never")
)

// What became of a stream: when its messages came, how many tokens they held, and why it failed.
type outcome struct {
	arrivals []time.Time
	tokens   int
	failure  error
}

func main() {
	flag.Parse()
	if !strings.HasPrefix(*address, "127.0.0.1:") || *streams < 1 || *streams > 10_000 || *patience > 10*time.Minute ||
		*connections < 1 || *connections > *streams {
		log.Fatal("the loopback interface, at most 10,000 streams, at most 10 minutes")
	}
	ctx, cancel := context.WithTimeout(context.Background(), *patience)
	defer cancel()
	if key := os.Getenv("CANDLEWICK_API_KEY"); key != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+key)
	}
	stubs := make([]candlewick.GenerationClient, *connections)
	for i := range stubs {
		connection, err := grpc.DialContext(ctx, *address, grpc.WithInsecure(), grpc.WithBlock())
		if err != nil {
			log.Fatal(err)
		}
		defer connection.Close()
		stubs[i] = candlewick.NewGenerationClient(connection)
	}
	outcomes := make([]outcome, *streams)
	var running, peak int64
	var all sync.WaitGroup
	began := time.Now()
	for i := range outcomes {
		all.Add(1)
		go func(i int) {
			defer all.Done()
			outcomes[i] = listen(ctx, stubs[i%len(stubs)], i, &running, &peak)
		}(i)
	}
	all.Wait()
	os.Exit(report(outcomes, time.Since(began), peak))
}

func listen(ctx context.Context, stub candlewick.GenerationClient, number int, running, peak *int64) (heard outcome) {
	request := &candlewick.GenerateStreamRequest{
		Prompt: &candlewick.Prompt{Prompt: &candlewick.Prompt_Text{Text: fmt.Sprintf("Story %d. Once upon a time", number)}},
		Options: &candlewick.RequestOptions{
			Sampling: &candlewick.SamplingParams{
				Temperature: proto.Float32(0), MaxTokens: proto.Uint32(uint32(*tokens)), IgnoreEos: proto.Bool(true),
			},
			HeartbeatIntervalMs: proto.Uint32(0),
		},
	}
	events, err := stub.GenerateStream(ctx, request)
	if err != nil {
		return outcome{failure: err}
	}
	heard.arrivals = make([]time.Time, 0, *tokens)
	for {
		event, err := events.Recv()
		if err != nil {
			if err != io.EOF {
				heard.failure = err
			}
			if len(heard.arrivals) > 0 {
				atomic.AddInt64(running, -1)
			}
			return heard
		}
		if delta := event.GetDelta(); delta != nil {
			if len(heard.arrivals) == 0 {
				now := atomic.AddInt64(running, 1)
				for old := atomic.LoadInt64(peak); now > old && !atomic.CompareAndSwapInt64(peak, old, now); {
					old = atomic.LoadInt64(peak)
				}
			}
			heard.arrivals = append(heard.arrivals, time.Now())
			heard.tokens += len(delta.TokenIds)
		}
	}
}

func report(outcomes []outcome, took time.Duration, peak int64) int {
	failures := map[string]int{}
	total, failed := 0, 0
	var lastFirst, firstLast time.Time
	for _, one := range outcomes {
		total += one.tokens
		if one.failure != nil {
			failures[status.Code(one.failure).String()]++
			failed++
		}
		if count := len(one.arrivals); count > 0 {
			if first := one.arrivals[0]; first.After(lastFirst) {
				lastFirst = first
			}
			if last := one.arrivals[count-1]; firstLast.IsZero() || last.Before(firstLast) {
				firstLast = last
			}
		}
	}
	fmt.Printf("%d streams over %d connections: %d tokens in %.1f s, %.0f a second; at most %d running at once; failed: %d %v\n",
		len(outcomes), *connections, total, took.Seconds(), float64(total)/took.Seconds(), peak, failed, failures)
	everything := gaps(outcomes, time.Time{}, time.Now())
	ratio := line("of all gaps", everything)
	if firstLast.After(lastFirst) {
		line("while every stream ran", gaps(outcomes, lastFirst, firstLast))
	} else {
		fmt.Println("  at no time did every stream run")
	}
	if failed > 0 || (*most > 0 && ratio > *most) {
		return 1
	}
	return 0
}

// The gaps that lie between two moments.
func gaps(outcomes []outcome, from, to time.Time) []time.Duration {
	var found []time.Duration
	for _, one := range outcomes {
		for i := 1; i < len(one.arrivals); i++ {
			if !one.arrivals[i-1].Before(from) && !one.arrivals[i].After(to) {
				found = append(found, one.arrivals[i].Sub(one.arrivals[i-1]))
			}
		}
	}
	sort.Slice(found, func(a, b int) bool { return found[a] < found[b] })
	return found
}

func line(what string, sorted []time.Duration) float64 {
	if len(sorted) == 0 {
		fmt.Printf("  %s: none\n", what)
		return 0
	}
	milliseconds := func(share float64) float64 {
		return float64(sorted[int(share*float64(len(sorted)-1))].Microseconds()) / 1000
	}
	ratio := milliseconds(1) / milliseconds(0.5)
	fmt.Printf("  %s: median %.1f ms, p99 %.1f ms, longest %.1f ms, which is %.1f medians\n",
		what, milliseconds(0.5), milliseconds(0.99), milliseconds(1), ratio)
	return ratio
}
