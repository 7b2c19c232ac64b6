// Debian alone: build.sh puts this into each program.
package main

import (
	"fmt"

	"google.golang.org/grpc/encoding"
	"google.golang.org/protobuf/proto"
)

// The gRPC that Debian 12 ships (1.33.3) is built on a protobuf (1.3.5) that cannot read what its own protoc-gen-go
// (1.28.1) writes. This reads it. A gRPC that is built on google.golang.org/protobuf needs no such thing.
type codec struct{}

func init() { encoding.RegisterCodec(codec{}) }

func (codec) Name() string { return "proto" }

func (codec) Marshal(message interface{}) ([]byte, error) {
	known, ok := message.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("%T is no message", message)
	}
	return proto.Marshal(known)
}

func (codec) Unmarshal(data []byte, message interface{}) error {
	known, ok := message.(proto.Message)
	if !ok {
		return fmt.Errorf("%T is no message", message)
	}
	return proto.Unmarshal(data, known)
}
