#!/bin/sh
# cauce.h alone in C11 and C++ without extensions; and what libcauce.so exports, needs and is called.
#
# usage: header_test.sh CLIENT_DIR LIBCAUCE_SO CC [CXX]
set -eu
client=$1 so=$2 cc=$3 cxx=${4:-}
failed=0
fail() {
    echo "FAIL: $*" >&2
    failed=1
}
header=$client/include/cauce/cauce.h
"$cc" -std=c11 -Wall -Wextra -Wpedantic -Wundef -Werror -fsyntax-only -x c "$header" ||
    fail "cauce.h as C11"
if [ -n "$cxx" ]; then
    "$cxx" -std=c++11 -Wall -Wextra -Wpedantic -Werror -fsyntax-only -x c++ "$header" ||
        fail "cauce.h as C++11"
else
    echo "no C++ compiler here: cauce.h was not tried as C++"
fi
nm -D --defined-only "$so" | awk '$2 != "A" {print $3}' | sed 's/@@.*//' | LC_ALL=C sort |
    diff -u "$client/tests/symbols.txt" - || fail "exported symbols"
readelf -d "$so" | grep -q 'Library soname: \[libcauce.so.0\]' || fail "soname"
for lib in av sw pq microhttpd jansson curl opencv; do
    readelf -d "$so" | grep NEEDED | grep -q "\[lib$lib" && fail "needs lib$lib"
done
exit $failed
