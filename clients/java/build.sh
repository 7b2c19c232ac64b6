#!/usr/bin/env bash
# Builds the example with Debian's packages alone, offline: apt-get install default-jdk-headless libgrpc-java
# libprotobuf-java libnetty-java libperfmark-java libgoogle-common-protos-java libgeronimo-annotation-1.3-spec-java
# protobuf-compiler protobuf-compiler-grpc-java-plugin
# ./build.sh builds into build/; ./build.sh check says what is missing; ./build.sh run [ADDRESS] runs what was built.
set -euo pipefail
cd "$(dirname "$0")"
jars=/usr/share/java
classpath=build/classes
for jar in grpc-api grpc-context grpc-core grpc-netty grpc-protobuf grpc-protobuf-lite grpc-stub protobuf guava \
  netty-buffer netty-codec netty-codec-http netty-codec-http2 netty-codec-socks netty-common netty-handler netty-handler-proxy \
  netty-resolver netty-transport perfmark-api proto-google-common-protos geronimo-annotation-1.3-spec; do
  [ -e "$jars/$jar.jar" ] || { echo "$jars/$jar.jar is missing" >&2; exit 3; }
  classpath+=:$jars/$jar.jar
done
[ "${1:-}" != check ] || exit 0
if [ "${1:-}" = run ]; then
  shift
  exec java -Xmx256m -cp "$classpath" Example "$@"
fi
rm -rf build/generated build/classes
mkdir -p build/generated build/classes
protoc -I../../proto --plugin=protoc-gen-grpc-java="$(command -v grpc_java_plugin)" --java_out=build/generated \
  --grpc-java_out=build/generated ../../proto/candlewick/v1/*.proto
find build/generated -name '*.java' > build/sources
javac -nowarn -Xlint:none -d build/classes -cp "$classpath" @build/sources Example.java
