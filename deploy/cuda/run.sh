#!/usr/bin/env bash
# Runs what deploy/cuda/pack.sh has packed, in a fixed order, on a machine that has a card or none:
#
#   CANDLEWICK_TEST_CARD=0 ./run.sh [MODEL...]     on the first card
#   ./run.sh [MODEL...]                            the same on the CPU
#
# Models are folders or GGUF files that are measured at last, after the demo model. What each program says is kept in results/; the
# exit status is 1 where one has failed, which does not keep the others from running.
#
# A card needs its driver (580 or later) and libcublas.so.13, libcublasLt.so.13 and libcurand.so.10 on LD_LIBRARY_PATH.
set -uo pipefail
cd "$(dirname "$0")"
here=$PWD
device=cpu
[ -z "${CANDLEWICK_TEST_CARD:-}" ] || device=cuda:$CANDLEWICK_TEST_CARD
# Where the tests look for their files and for the server.
export CARGO_MANIFEST_DIR=$here CARGO_BIN_EXE_candlewick=$here/bin/candlewick
mkdir -p results
failed=0 number=0

# What it is called, and the command.
step() {
  local log
  number=$((number + 1))
  log=$(printf 'results/%02d-%s.txt' "$number" "$1")
  if "${@:2}" > "$log" 2>&1; then
    echo "ok      $log"
  else
    echo "FAILED  $log:"
    tail -n 3 "$log" | sed 's/^/        /'
    failed=1
  fi
}

echo "commit $(cat COMMIT), $device"
step doctor bin/candlewick doctor
step generate bin/candlewick generate --device "$device" --prompt 'Once upon a time' --temperature 0 --max-tokens 16
# One test at a time: each opens the card and takes its memory for itself.
step golden bin/it arch_golden:: --test-threads 1
# The demo model has a context of 512.
step bench-demo bin/candlewick bench --device "$device" --prompt 256 --json
for model in "$@"; do
  step "bench-$(basename "$model")" bin/candlewick bench "$model" --device "$device" --json
done
exit "$failed"
