#!/usr/bin/env bash
# Builds the archive of a release: the program, manual pages, completions, licences and protos. The same commit, toolchain
# and target give the same bytes, wherever it is built: paths are mapped away, times are the commit's, files are sorted and
# belong to nobody.
#
#   deploy/release.sh [FOLDER]     the archive and its SHA-256 go there; target/dist without
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-target/dist}
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export LC_ALL=C TZ=UTC CARGO_INCREMENTAL=0
home=${CARGO_HOME:-$HOME/.cargo}
export RUSTFLAGS="--remap-path-prefix=$PWD=/candlewick --remap-path-prefix=$home=/cargo ${RUSTFLAGS:-}"

cargo build --release --locked --bin candlewick
target=$(rustc -vV | sed -n 's/^host: //p')
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
name=candlewick-$version-$target
staged=$(mktemp -d)
trap 'rm -rf "$staged"' EXIT
root=$staged/$name
mkdir -p "$root/completions" "$root/man"

install -m 755 "${CARGO_TARGET_DIR:-target}/release/candlewick" "$root/candlewick"
for shell in bash zsh fish; do
  "$root/candlewick" completions "$shell" > "$root/completions/candlewick.$shell"
done
"$root/candlewick" man "$root/man" 2> /dev/null
cp README.md CHANGELOG.md LICENSE-MIT LICENSE-APACHE "$root/"
cp -r proto "$root/proto"
find "$root" -type d -exec chmod 755 {} +
find "$root" -type f ! -name candlewick -exec chmod 644 {} +

mkdir -p "$out"
archive=$out/$name.tar.gz
tar --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --format=gnu -C "$staged" -cf - "$name" |
  gzip -9n > "$archive"
(cd "$out" && sha256sum "$name.tar.gz" | tee "$name.tar.gz.sha256")
