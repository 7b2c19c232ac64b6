#!/usr/bin/env bash
# Builds the example with Debian's packages alone, offline: apt-get install golang-go golang-google-grpc-dev
# golang-google-protobuf-dev golang-google-genproto-dev protobuf-compiler protoc-gen-go protoc-gen-go-grpc
# In GOPATH mode, because Debian ships libraries as sources without modules. The binaries are build/example and build/manystreams.
set -euo pipefail
cd "$(dirname "$0")"
out=build/gopath/src/candlewick
mkdir -p "$out"
# The contract names no Go package: candlewick/v1 is ours.
mapping=()
for file in ../../proto/candlewick/v1/*.proto; do
  mapping+=("M${file#../../proto/}=candlewick/v1;candlewickv1")
done
options=$(IFS=,; echo "${mapping[*]}")
protoc -I../../proto --go_out="$options:build/gopath/src" --go-grpc_out="$options:build/gopath/src" ../../proto/candlewick/v1/*.proto
export GO111MODULE=off GOFLAGS= GOCACHE=$PWD/build/cache GOPATH=$PWD/build/gopath:${DEBIAN_GOPATH:-/usr/share/gocode}
for program in example manystreams; do
  rm -rf "${out:?}/$program"
  cp -r "$program" "$out/$program"
  cp debian/codec.go "$out/$program/codec.go"
  go build -o "build/$program" "candlewick/$program"
done
