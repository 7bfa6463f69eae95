#!/bin/sh
# Golden outputs and error cases of protoc-gen-cauce-rpc, and the messages of protoc-gen-cauce-c.
#
# usage: gen_test.sh PROTO_DIR BIN_DIR SCRATCH_DIR
# Each bad/*.proto says in its first line at which line which message must be.
set -eu
proto=$1 bin=$2 out=$3
data=$proto/gen/testdata
failed=0
fail() {
    echo "FAIL: $*" >&2
    failed=1
}
run() { # run SOURCE_DIR FILE
    protoc -I "$1" -I "$proto" \
        --plugin=protoc-gen-cauce-c="$bin/protoc-gen-cauce-c" --cauce-c_out="$out" \
        --plugin=protoc-gen-cauce-rpc="$bin/protoc-gen-cauce-rpc" --cauce-rpc_out="$out" "$2"
}

rm -rf "$out"
mkdir -p "$out"
run "$data/ok" demo.proto
for f in demo.rpc.h demo.rpc.c; do
    diff -u "$data/golden/$f" "$out/$f" || fail "$f differs from its golden output"
done
grep -v '^    [0-9]' "$out/cauce/services.rpc.c" | diff -u "$data/golden/services.rpc.c" - ||
    fail "services.rpc.c differs from its golden output"

for f in "$data"/bad/*.proto; do
    name=$(basename "$f")
    want=$(sed -n '1s|^// expect: ||p' "$f")
    if said=$(run "$data/bad" "$name" 2>&1); then
        fail "$name: accepted, should say: $want"
    fi
    case $said in
    *"$name:$want"*) ;;
    *) fail "$name: should say \"$name:$want\" but says: $said" ;;
    esac
done
exit $failed
