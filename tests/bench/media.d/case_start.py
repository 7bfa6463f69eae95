"""Benchmark 3: from Playback.Open to the first segment of what nobody has made yet; seeks; beside ffmpeg per play."""
import http.client
import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.parse

from common import CLIPS, Missing, median
from common import run as command

NAME = "start"
WHAT = "Open to the first segment through the gateway, in the middle of a film that is not made; beside ffmpeg per play"
CLIP, CLIP_S = "road", 8  # keyframes every 2 s
PASSWORD = "correct horse battery"
RUNG = "v720"
N_WORKERS = 2  # of compose/launcher, with a slot each
WATCH_S = 180
FRESH = 12  # segments between two places that are asked for: no task made for one reaches the next


def long_film(env, seconds):
    """The clip's beginning at 4 Mbit/s, again and again, its packets as they are."""
    source, once, path = os.path.join(env.media, CLIPS[CLIP][0]), env.path("once.mp4"), env.path(f"long-{seconds}.mp4")
    if not os.path.exists(source):
        raise Missing(f"{source} is not there (CAUCE_TEST_DATA)")
    if not os.path.exists(path):
        command(["ffmpeg", "-v", "error", "-i", source, "-t", str(CLIP_S), "-c:v", "libx264", "-preset", "veryfast", "-crf", "20",
                 "-maxrate", "4M", "-bufsize", "8M", "-g", "50", "-pix_fmt", "yuv420p", "-c:a", "aac", "-y", once])
        command(["ffmpeg", "-v", "error", "-stream_loop", str(seconds // CLIP_S - 1), "-i", once, "-c", "copy",
                 "-movflags", "+faststart", "-y", path])
    return path


class Platform:
    """All roles on this machine, and a film that is playable and paused."""

    def __init__(self, env):
        self.env, self.conn = env, None
        sys.path.insert(0, os.path.join(env.root, "compose", "launcher"))
        os.environ.update(CAUCE_BUILD=os.path.abspath(env.build), CAUCE_HTTP="127.0.0.1:0", CAUCE_RPC="127.0.0.1:0")
        try:
            import local
        except ImportError as e:
            raise Missing(f"compose/launcher: {e}") from e
        self.local = local.Platform(home=env.path("home"))

    def __enter__(self):
        try:
            said = self.local.up()
        except Exception as e:  # no PostgreSQL here, ...
            self.local.down()
            raise Missing(f"the platform does not start: {e}") from e
        self.server, self.http = said["server"], urllib.parse.urlsplit(said["http"])
        return self

    def __exit__(self, *_):
        self.local.down()

    def ctl_env(self):
        return dict(os.environ, CAUCE_SERVER=self.server, CAUCE_STATE_DIR=self.env.path("state"), CAUCE_PASSWORD=PASSWORD)

    def ctl(self, *words):
        done = subprocess.run([self.env.program("mediactl"), *words, "--json"], env=self.ctl_env(), stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise RuntimeError(f"mediactl {' '.join(words)}: {done.stderr.strip()[-400:]}")
        return json.loads(done.stdout) if done.stdout.strip() else {}

    def call(self, method, url, body=None, token=None):
        """One request on the connection that a player keeps open; again when it was idle for too long."""
        try:
            return self.call_once(method, url, body, token)
        except ConnectionError:
            self.conn = None
            return self.call_once(method, url, body, token)

    def call_once(self, method, url, body, token):
        if not self.conn:
            self.conn = http.client.HTTPConnection(self.http.hostname, self.http.port, timeout=60)
        head = {"Content-Type": "application/json"} if body is not None else {}
        if token:
            head["Authorization"] = "Bearer " + token
        for _ in range(4):  # a busy machine: a wait of half a minute may not be enough
            self.conn.request(method, url, None if body is None else json.dumps(body), head)
            r = self.conn.getresponse()
            data = r.read()
            if r.status == 200:
                return data
            if r.status != 503:
                break
        raise RuntimeError(f"{method} {url}: {r.status} {data[:200]!r}")

    def film(self, path):
        """Upload, wait until it is playable, then stop what is made in the background."""
        self.ctl("register", "bench")
        self.token = json.loads(self.call("POST", "/api/v1/login", {"name": "bench", "password": PASSWORD}))["accessToken"]
        said = self.ctl("upload", path)
        item = (said["uploads"][0] if "uploads" in said else said)["item_id"]
        self.watch(item, lambda job: job.get("playable"))
        return item

    def watch(self, item, match):
        """Follows the job until match(job) holds; a job that ends before is an error."""
        p = subprocess.Popen([self.env.program("mediactl"), "job", "watch", item, "--json"], env=self.ctl_env(), text=True,
                             stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        timer = threading.Timer(WATCH_S, p.kill)
        timer.start()
        try:
            for line in p.stdout:
                if match(json.loads(line)["job"]):
                    return
        finally:
            timer.cancel()
            p.kill()
            p.wait()
            p.stdout.close()
        raise RuntimeError("the job did not get there")

    def background(self, item, go_on):
        self.ctl("job", "resume" if go_on else "pause", item)
        # Until all workers are busy with it, or what was being made is finished.
        self.watch(item, lambda job: (sum(t["state"] == "leased" for t in job.get("taskList", [])) == (N_WORKERS if go_on else 0)))

    def renditions(self, item):
        return json.loads(self.call("POST", f"/api/v1/items/{item}/play", {}, self.token))["renditions"]

    def open(self, item):
        """Open, as a player with those wishes: base address of the renditions."""
        play = json.loads(self.call("POST", f"/api/v1/items/{item}/play", {"profile": {"neverDirect": True}}, self.token))
        self.call("GET", play["masterUrl"])
        return play["masterUrl"].rsplit("/", 1)[0]

    def play(self, item, rendition, segment):
        """Seconds from Open to the first segment, with all that a player fetches on the way."""
        begin = time.monotonic()
        base = self.open(item)
        self.call("GET", f"{base}/{rendition}.m3u8")
        self.call("GET", f"{base}/{rendition}/init.mp4")
        size = len(self.call("GET", f"{base}/{rendition}/{segment}.m4s"))
        return time.monotonic() - begin, size, base

    def seek(self, base, rendition, segment):
        begin = time.monotonic()
        self.call("GET", f"{base}/{rendition}/{segment}.m4s")
        return time.monotonic() - begin


def places(n_segments, n):
    """Segments about the middle, far enough from each other."""
    first = n_segments // 2 - n * FRESH // 2
    return [first + i * FRESH for i in range(n)]


def measure(p, item, rendition, system, rounds):
    base = p.open(item)
    playlist = p.call("GET", f"{base}/{rendition}.m3u8").decode()
    at = places(len(re.findall(r"#EXTINF", playlist)), 2 * rounds)
    starts, seeks = [], []
    for i in range(rounds):
        took, _, base = p.play(item, rendition, at[2 * i])
        starts.append(took)
        seeks.append(p.seek(base, rendition, at[2 * i + 1]))
    return {"case": NAME, "system": system, "rounds": rounds,
            "metrics": {"start_s": median(starts), "start_s_most": max(starts), "seek_s": median(seeks), "seek_s_most": max(seeks)}}


def ffmpeg_start(source, out, at_s, copy, segment_s):
    """Seconds that a fresh ffmpeg takes for that one segment."""
    codec = ["-c", "copy"] if copy else ["-vf", "scale=-2:720", "-c:v", "libx264", "-preset", "veryfast", "-crf", "23", "-c:a", "aac"]
    begin = time.monotonic()
    command(["ffmpeg", "-v", "error", "-nostdin", "-ss", str(at_s), "-i", source, "-t", str(segment_s), *codec, "-f", "mp4",
             "-movflags", "frag_keyframe+empty_moov", "-y", out])
    return time.monotonic() - begin


def ffmpeg_row(env, source, seconds, system, copy, segment_s, rounds):
    took = [ffmpeg_start(source, env.path("one.mp4"), seconds / 2 + 37 * i, copy, segment_s) for i in range(rounds)]
    return {"case": NAME, "system": system, "rounds": rounds, "metrics": {"start_s": median(took), "start_s_most": max(took)}}


def print_row(row):
    m = row["metrics"]
    seek = f"{m['seek_s'] * 1000:>9.0f}{m['seek_s_most'] * 1000:>9.0f}" if "seek_s" in m else f"{'-':>9}{'-':>9}"
    print(f"  {row['system']:<34}{m['start_s'] * 1000:>9.0f}{m['start_s_most'] * 1000:>9.0f}{seek}", flush=True)


def run_cauce(env, source, rounds, rows):
    with Platform(env) as p:
        item = p.film(source)
        p.background(item, False)
        plans = {r["id"] for r in p.renditions(item)}
        p.play(item, RUNG, 3)  # the first of all: connections, the index of the source
        rows.append(measure(p, item, RUNG, "cauce, 720p", rounds))
        print_row(rows[-1])
        if "vcopy" in plans:
            rows.append(measure(p, item, "vcopy", "cauce, remux", rounds))
            print_row(rows[-1])
        p.background(item, True)
        rows.append(measure_busy(p, item, rounds))
        print_row(rows[-1])


def measure_busy(p, item, rounds):
    """Workers busy with the film's other segments; towards its end, where they come last."""
    base = p.open(item)
    n = len(re.findall(r"#EXTINF", p.call("GET", f"{base}/{RUNG}.m3u8").decode()))
    starts, seeks = [], []
    for i in range(rounds):
        took, _, base = p.play(item, RUNG, n - 3 - 2 * i * FRESH)
        starts.append(took)
        seeks.append(p.seek(base, RUNG, n - 3 - (2 * i + 1) * FRESH))
    return {"case": NAME, "system": "cauce, 720p, workers busy", "rounds": rounds,
            "metrics": {"start_s": median(starts), "start_s_most": max(starts), "seek_s": median(seeks), "seek_s_most": max(seeks)}}


def run(env):
    seconds, rounds = 1200, 3 if env.quick else 7
    source = long_film(env, seconds)
    print(f"\n  {seconds // 60} minutes of {CLIPS[CLIP][2]}, 1080p, a keyframe every 2 s; milliseconds, median and most of {rounds}")
    print(f"  {'':<34}{'start':>9}{'most':>9}{'seek':>9}{'most':>9}", flush=True)
    rows = []
    run_cauce(env, source, rounds, rows)
    for system, copy, segment_s in (("ffmpeg, 720p, segments of 4 s", False, 4), ("ffmpeg, 720p, segments of 1 s", False, 1),
                                    ("ffmpeg, remux", True, 4)):
        rows.append(ffmpeg_row(env, source, seconds, system, copy, segment_s, rounds))
        print_row(rows[-1])
    by = {r["system"]: r["metrics"] for r in rows}
    targets = [("start: Open to the first 720p segment, s", by["cauce, 720p"]["start_s"], "max", 0.8),
               ("start: seek to a 720p segment, s", by["cauce, 720p"]["seek_s"], "max", 0.8)]
    if "cauce, remux" in by:
        targets.append(("start: Open to the first remuxed segment, s", by["cauce, remux"]["start_s"], "max", 0.06))
    return rows, targets
