#!/bin/sh
# What mediactl does without a server: usage, help, exit codes, completion.
#
# usage: mediactl_test.sh MEDIACTL SCRATCH_DIR
set -u
ctl=$1 out=$2
failed=0
rm -rf "$out"
mkdir -p "$out"
unset CAUCE_SERVER CAUCE_PASSWORD CAUCE_LIBRARY
export CAUCE_STATE_DIR="$out/state"

expect() { # expect CODE TEXT WORD...: exit code, and words that the output must hold
    code=$1 text=$2
    shift 2
    said=$("$ctl" "$@" 2>&1 </dev/null)
    got=$?
    [ "$got" -eq "$code" ] || { echo "FAIL: $*: ended with $got, not $code: $said" >&2; failed=1; }
    case $said in
    *"$text"*) ;;
    *) echo "FAIL: $*: does not say \"$text\": $said" >&2; failed=1 ;;
    esac
}

nowhere='cauce://127.0.0.1:1#AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA'
expect 2 'usage: mediactl COMMAND'
expect 0 'Exit status' --help
expect 0 'mediactl 0.' version
expect 0 '"version"' version --json
expect 2 'unknown command "frob"' frob
expect 2 'job what?' job
expect 2 'unknown option --frob' ls --frob
expect 2 'ls does not take --title' ls --title x
expect 2 '--server needs URL' ls --server
expect 2 '--json takes no value' ls --json=1
expect 2 'usage: mediactl show ITEM' show
expect 2 'no server given' ls
expect 2 'not of the form' --server nonsense ls
expect 6 '' --server "$nowhere" --timeout 2s ls
expect 4 'not logged in' --server "$nowhere" whoami
expect 2 '' --timeout soon ls
expect 1 'no terminal to ask' --server "$nowhere" login ada
expect 2 'is not an amount' --server "$nowhere" upload --price 5 "$0"
expect 2 '--metadata needs KEY=VALUE' rpc call Node.Info --metadata
expect 2 'node ls does not take --metadata' node ls --metadata a=b
expect 2 'usage: mediactl rpc call SERVICE.METHOD' rpc call
expect 2 'usage: mediactl node health [NODE]' node health a b
expect 6 '' --server "$nowhere" --timeout 2s rpc ls
expect 2 'x5 is no priority' --server "$nowhere" job priority x x5
expect 6 '' --server "$nowhere" --timeout 2s job priority x -5
expect 0 'mediactl node channels' node channels --help
expect 3 '' play 0192f3a0-0000-7000-8000-000000000001 --from-library "$out" --out "$out/x"
for words in $("$ctl" --help | sed -n 's/^  \([a-z]* \{0,1\}[a-z]*\) .*/\1/p' | sed 's/ *$//; s/ /,/'); do
    expect 0 'usage: mediactl' $(echo "$words" | tr , ' ') --help
done
if command -v bash >/dev/null; then
    "$ctl" completion bash >"$out/completion"
    words=$(bash -c '. "$1"; COMP_WORDS=(mediactl job ""); COMP_CWORD=2; _mediactl; echo "${COMPREPLY[@]}"' \
        - "$out/completion")
    [ "$words" = "ls show watch retry cancel pause resume priority why queue" ] || { echo "FAIL: completion of job: $words" >&2; failed=1; }
fi
exit $failed
