#!/usr/bin/env bash
# A stock command-line client (buf curl) against a running server, which it learns to know by reflection alone.
#
#   cargo run --release -- serve &
#   tests/clients/buf_curl.sh [ADDRESS]
#
# `buf` comes from npm (@bufbuild/buf), from PyPI (buf-bin, see requirements.txt) or from its own releases.
set -euo pipefail
address="http://${1:-127.0.0.1:50051}"
call() { buf curl --protocol grpc --http2-prior-knowledge "$@"; }

echo "services, by reflection:"
call --list-methods "$address"

echo "the model:"
call "$address/candlewick.v1.Models/List"

echo "a stream, by token ids:"
stream=$(call --data '{"prompt": {"tokenIds": {"ids": [1, 2, 3]}},
  "options": {"sampling": {"temperature": 0, "maxTokens": 8, "ignoreEos": true}}}' \
  "$address/candlewick.v1.Generation/GenerateStream")
echo "$stream"
grep -q '"completionTokens": *8' <<<"$stream"

echo "health:"
health=$(call --data '{"service": "candlewick.v1.Generation"}' "$address/grpc.health.v1.Health/Check")
echo "$health"
grep -q '"SERVING"' <<<"$health"

echo "loads, and the cache emptied:"
loads=$(call "$address/candlewick.v1.Admin/GetLoads")
echo "$loads"
grep -q '"serving": *true' <<<"$loads"
flushed=$(call "$address/candlewick.v1.Admin/FlushCache")
echo "$flushed"
aborted=$(call --data '{"requestId": "nobody"}' "$address/candlewick.v1.Admin/Abort")
echo "$aborted"
if call -H 'origin: http://localhost' "$address/candlewick.v1.Admin/FlushCache" 2>/dev/null; then
  echo "a page emptied the cache" >&2
  exit 1
fi

echo "a refusal, with the field at fault:"
if refused=$(call --data '{"prompt": {"tokenIds": {"ids": [1]}}, "options": {"sampling": {"topP": 7}}}' \
  "$address/candlewick.v1.Generation/GenerateStream" 2>&1); then
  echo "a top_p of 7 was taken" >&2
  exit 1
fi
echo "$refused"
grep -q 'options.sampling.top_p' <<<"$refused"
echo "all came as it should"
