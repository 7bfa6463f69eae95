"""Nothing but what it was given: strace watches the codec processes while they probe, encode and make pictures of
ordinary and hostile files. From the moment that a process is confined it and its threads make no call that opens a
file, makes or uses an address of a socket, or starts a program.
"""
import os
import re
import shutil
import subprocess
import sys
import tempfile

import hostile_test as hostile
import material as m
import traps_test as traps
from traps_test import X264, base, need

ORDINARY = (
    lambda: base("mp4"), lambda: traps.long_film("mkv"), lambda: base("ts", *X264, "-g", "25"), lambda: hostile.CONTAINERS["webm"](),
    lambda: hostile.CONTAINERS["ogg"](), lambda: hostile.CONTAINERS["hevc.mp4"](), lambda: hostile.CONTAINERS["mp3"](), lambda: hostile.CONTAINERS["gif"](),
    lambda: traps.cases["pictures: 4:4:4 of 10 bits"][0](), lambda: traps.cases["sound: 7.1 AAC"][0](),
    lambda: hostile.short("mov", "-c:v", "prores_ks", audio=["-c:a", "pcm_s16le"]))
REACHING = ("mp4 whose data lie elsewhere", "QuickTime with an alias", "Matroska linked to other files", "Matroska with a playlist attached",
            "song with a PNG of 16000x16000 as its cover", "Matroska with 300 tracks", "PNG of 16000x16000 as a film")
CALLS = "open,openat,openat2,creat,socket,socketpair,connect,bind,listen,accept,accept4,execve,execveat,fork,vfork,clone,clone3,seccomp,mkdir,mkdirat,unlink,unlinkat,rename,renameat,renameat2,link,symlink,truncate"
MAY = {"clone", "clone3"}  # threads; the filter allows nothing else, and has nothing to say about clone3 but "no such call"

LINE = re.compile(r"^(\d+) +(?:<\.\.\. (\w+) resumed>(.*)|(\w+)\((.*))$")
RESULT = re.compile(r"= (-?\d+|\?)[^=]*$")


def calls_after_confinement(path):
    """(how many processes were confined, [(pid, line)] of calls that those made afterwards)."""
    confined, out, unfinished = {}, [], {}
    with open(path) as f:
        for line in f:
            hit = LINE.match(line)
            if not hit:
                continue
            pid, resumed, rest, name, args = hit.groups()
            if resumed:
                name, text = resumed, unfinished.pop((pid, resumed), "") + rest
            elif "<unfinished ...>" in line:
                unfinished[pid, name] = args
                if pid in confined and name not in MAY:
                    out.append((pid, line.strip()))
                continue
            else:
                text = args
            result = RESULT.search(text)
            value = result.group(1) if result else "?"
            if name == "seccomp" and "SECCOMP_SET_MODE_FILTER" in text and value == "0":
                confined[pid] = True
            elif pid in confined:
                if name in MAY:
                    if value.isdigit() and "CLONE_THREAD" in text:
                        confined[value] = False  # a thread of it
                    elif value != "-1":
                        out.append((pid, line.strip()))
                else:
                    out.append((pid, line.strip()))
    return sum(confined.values()), out


def watch(paths, *options):
    """Runs them under strace; the calls of confined processes."""
    folder = tempfile.mkdtemp(prefix="confined-", dir=traps.CACHE)
    try:
        trace = os.path.join(folder, "trace")
        m.run("strace", "-f", "-qq", "-s", "64", "-o", trace, "-e", "trace=" + CALLS, "-e", "signal=none",
              os.path.join(m.BIN, "media_try"), "--deadline", "120000", *options, *(["--make", folder] if options else []), *paths,
              env=dict(os.environ, CAUCE_BIN_DIR=m.BIN))
        return calls_after_confinement(trace)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def can_trace():
    return shutil.which("strace") and subprocess.run(["strace", "-qq", "-o", "/dev/null", "true"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def main():
    if not can_trace():
        print("skipped: strace is missing or may not trace")
        return 77
    ordinary = [f() for f in ORDINARY]
    reaching = [hostile.files[n][0]() for n in (*REACHING, *(n for n in hostile.files if " named ." in n))]
    bad = 0
    for what, paths, options in (("segments and pictures of ordinary files", ordinary, ("--segment", "0", "--images")),
                                 ("files that name others, or are too large", reaching, ("--segment", "0", "--images"))):
        n, calls = watch(paths, *options)
        try:
            need(n >= len(paths), "%d processes were confined, for %d files", n, len(paths))
            need(not calls, "%d calls after confinement: %s", len(calls), calls[:5])
            m.note("ok   %s: %d files, %d confined processes, not one call to the outside" % (what, len(paths), n))
        except AssertionError as e:
            m.note("FAIL %s: %s" % (what, e))
            bad += 1
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
