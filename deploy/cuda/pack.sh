#!/usr/bin/env bash
# The server and its tests for a machine that has a card, and neither Rust nor CUDA's compiler: a tar of stripped programs, with
# what the tests read beside them and run.sh, which runs them in order.
#
#   deploy/cuda/setup.sh && . target/cuda-toolkit/env      or a machine's own CUDA 13.0
#   deploy/cuda/pack.sh [ARCHIVE]                          target/dist/candlewick-cuda.tar.xz without
#
# What is carried is 60 MiB at the most. Both programs hold the same kernels, which the packer sees once: its window is larger than a
# program.
#
# It is built as the release is, by `cargo build --release --features cuda` with what CARGO_BUILD_FLAGS adds.
set -euo pipefail
cd "$(dirname "$0")/../.."
archive=${1:-target/dist/candlewick-cuda.tar.xz}
most_bytes=$((60 << 20))

# Cargo says where it has put what it built.
built=$(cargo build --release --locked --features cuda --bin candlewick --test it ${CARGO_BUILD_FLAGS:-} \
  --message-format json-render-diagnostics)
program() {
  python3 -c '
import json, sys
built = [json.loads(line) for line in sys.stdin]
print([b["executable"] for b in built if b.get("executable") and b["target"]["name"] == sys.argv[1]][-1])' "$1" <<< "$built"
}

staged=$(mktemp -d)
trap 'rm -rf "$staged"' EXIT
root=$staged/candlewick-cuda
mkdir -p "$root/bin" "$root/models/demo"
for name in candlewick it; do
  strip -o "$root/bin/$name" "$(program "$name")"
  printf '%10d  bin/%s\n' "$(stat -c %s "$root/bin/$name")" "$name"
done
# What tests read by its place in the repository.
mkdir -p "$root/tests"
cp -r tests/fixtures "$root/tests/fixtures"
cp models/demo/demo.gguf "$root/models/demo/"
cp deploy/cuda/run.sh LICENSE-MIT LICENSE-APACHE "$root/"
# Where it was built from, which a card's results are to be read with.
git rev-parse HEAD > "$root/COMMIT"

mkdir -p "$(dirname "$archive")"
tar --sort=name --owner=0 --group=0 --numeric-owner -C "$staged" -c candlewick-cuda | xz --lzma2=preset=6,dict=256MiB > "$archive"
bytes=$(stat -c %s "$archive")
printf '%10d  %s\n' "$bytes" "$archive"
if [ "$bytes" -gt "$most_bytes" ]; then
  echo "$archive is larger than $most_bytes bytes" >&2
  exit 1
fi
