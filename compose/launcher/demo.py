"""compose/local demo: the main job from end to end, each step timed; any failing step ends it."""

import hashlib
import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

PRICE = "5.00 EUR"
CREDIT = "20.00 EUR"
COMPLETE_S = 900  # a long film on a slow machine is not an error; a stuck one is


def _seconds(stream):
    """How long a stream of ffprobe's is; None when it does not say. Matroska has it as a tag."""
    if "duration" in stream:
        return float(stream["duration"])
    tag = stream.get("tags", {}).get("DURATION", "")
    if not re.fullmatch(r"\d+:\d\d:\d\d(\.\d+)?", tag):
        return None
    hours, minutes, seconds = tag.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


class StepFailed(Exception):
    pass


class Demo:
    def __init__(self, plat, film, as_json):
        self.plat, self.film, self.as_json = plat, film, as_json
        self.steps = []
        self.tmp = tempfile.TemporaryDirectory(prefix="cauce-demo-")
        self.tag = secrets.token_hex(4)
        self.server = self.http = self.item = None
        self.renditions = []

    # ---- running things ----

    def step(self, name, fn):
        began = time.monotonic()
        try:
            note = fn() or ""
            ok = True
        except (StepFailed, subprocess.TimeoutExpired, OSError, ValueError, KeyError) as e:
            note, ok = f"{type(e).__name__}: {e}" if not isinstance(e, StepFailed) else str(e), False
        row = {"name": name, "ok": ok, "seconds": round(time.monotonic() - began, 3)}
        if note:
            row["note"] = note
        self.steps.append(row)
        print(f"{'ok  ' if ok else 'FAIL'} {row['seconds']:8.2f} s  {name}{'  ' + note if note else ''}",
              file=sys.stderr, flush=True)
        return ok

    def run(self, argv, env=None, timeout=120):
        p = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, env=env)
        if p.returncode:
            raise StepFailed(f"{os.path.basename(argv[0])} {argv[1] if len(argv) > 1 else ''} ended with "
                             f"{p.returncode}: {p.stderr.strip()[-400:]}")
        return p.stdout

    def env(self, who, password=None):
        e = dict(os.environ, CAUCE_SERVER=self.server, CAUCE_STATE_DIR=os.path.join(self.tmp.name, who))
        if password:
            e["CAUCE_PASSWORD"] = password
        return e

    def ctl(self, who, *words, password=None, timeout=120):
        out = self.run([self.plat.bin("mediactl"), *words, "--json"], self.env(who, password), timeout)
        return json.loads(out) if out.strip() else {}

    def fetch(self, url, token=None, body=None):
        req = urllib.request.Request(urllib.parse.urljoin(self.http, url))
        if token:
            req.add_header("Authorization", "Bearer " + token)
        if body is not None:
            req.data = json.dumps(body).encode()
            req.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(req, timeout=60) as r:
                return r.read()
        except urllib.error.HTTPError as e:
            raise StepFailed(f"GET {url}: {e.code} {e.read()[:200]!r}") from None

    # ---- the steps ----

    def start(self):
        r = self.plat.up()
        self.server, self.http = r["server"], r["http"]
        return f"{self.http}"

    def make_film(self):
        if self.film:
            if not os.path.isfile(self.film):
                raise StepFailed(f"{self.film} is not a file")
            return self.film
        self.film = os.path.join(self.tmp.name, "film.mp4")
        self.run(["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "testsrc2=size=1280x720:rate=25:duration=12",
                  "-f", "lavfi", "-i", "sine=frequency=440:sample_rate=48000:duration=12", "-c:v", "libx264",
                  "-preset", "veryfast", "-g", "50", "-pix_fmt", "yuv420p", "-c:a", "aac", "-shortest",
                  "-metadata", f"comment={self.tag}", self.film])
        return f"12 s, 1280x720, {os.path.getsize(self.film) / 1e6:.1f} MB"

    def register(self, who):
        self.ctl(who, "register", f"{who}-{self.tag}", password=f"pw-{who}-{self.tag}")

    def upload(self):
        self.follow = subprocess.Popen(
            [self.plat.bin("mediactl"), "events", "tail", "--topic", "transcode", "--json"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=self.env("seller"))
        r = self.ctl("seller", "upload", self.film, "--title", f"Demo {self.tag}", "--price", PRICE,
                     "--public", timeout=COMPLETE_S)
        if isinstance(r, dict) and "uploads" in r:
            r = r["uploads"][0]
        self.item = r["item_id"]
        self.uploaded = time.monotonic()
        return f"{os.path.getsize(self.film) / 1e6:.1f} MB -> {self.item}"

    def wait_event(self, kind):
        """Reads events of our item until the wanted one; the timer ends a wait that would never end."""
        timer = threading.Timer(COMPLETE_S, self.follow.kill)
        timer.start()
        try:
            for line in self.follow.stdout:
                e = json.loads(line)
                data = e.get("data") or {}
                if isinstance(data, str):
                    data = json.loads(data)
                if self.item not in (e.get("subject"), data.get("item_id"), data.get("item")):
                    continue
                if e["kind"] == "job.failed":
                    raise StepFailed(f"the job failed: {data.get('reason')}")
                if e["kind"] == kind:
                    return f"{time.monotonic() - self.uploaded:.2f} s after the upload"
        finally:
            timer.cancel()
        raise StepFailed(f"the event stream ended before {kind}")

    def play_library(self):
        out = os.path.join(self.tmp.name, "played.mp4")
        self.run([self.plat.bin("mediactl"), "play", self.item, "--out", out], self.env("seller"), 300)
        return self.check_media(out)

    def check_media(self, path):
        want, got = self.probe(self.film), self.probe(path)
        if abs(want["duration"] - got["duration"]) > 0.25:
            raise StepFailed(f"{path} lasts {got['duration']:.2f} s, the film {want['duration']:.2f} s")
        if want["kinds"] != got["kinds"]:
            raise StepFailed(f"{path} has {got['kinds']}, the film {want['kinds']}")
        return f"{got['duration']:.2f} s, {'+'.join(got['codecs'])}"

    def probe(self, path):
        r = json.loads(self.run(["ffprobe", "-v", "error", "-show_streams", "-show_format", "-of", "json", path]))
        streams = [s for s in r["streams"] if s["codec_type"] in ("video", "audio")
                   and not s.get("disposition", {}).get("attached_pic")]
        kinds = sorted({s["codec_type"] for s in streams})
        # The container's length counts subtitles too, which may go on after the film.
        lengths = [seconds for seconds in map(_seconds, streams) if seconds is not None]
        return {"duration": max(lengths) if len(lengths) == len(streams) else float(r["format"]["duration"]),
                "kinds": kinds,
                "codecs": [s["codec_name"] for s in streams]}

    def play_hls(self):
        token = json.loads(self.fetch("/api/v1/login", body={
            "name": f"seller-{self.tag}", "password": f"pw-seller-{self.tag}"}))["accessToken"]
        play = json.loads(self.fetch(f"/api/v1/items/{self.item}/play", token, {}))
        master_url = play["masterUrl"]
        master = self.fetch(master_url).decode()
        variants = re.findall(r"#EXT-X-STREAM-INF:(.*)\n(.+)", master)
        audio = re.findall(r'#EXT-X-MEDIA:TYPE=AUDIO.*URI="([^"]+)"', master)
        if not variants and not audio:
            raise StepFailed(f"no variants in the master playlist: {master[:200]}")
        self.renditions = [self.variant(a, u) for a, u in variants]
        n = 0
        for name, url in [("video", variants[-1][1] if variants else None), ("audio", audio[0] if audio else None)]:
            if url:
                path = os.path.join(self.tmp.name, f"hls-{name}.mp4")
                n += self.download_rendition(urllib.parse.urljoin(master_url, url.strip()), path)
                self.probe(path)
        return f"{len(variants)} levels, {n} segments"

    @staticmethod
    def variant(attributes, uri):
        a = dict(re.findall(r'([A-Z-]+)=("[^"]*"|[^,]*)', attributes))
        return {"uri": uri.strip().rsplit("/", 1)[-1], "resolution": a.get("RESOLUTION"),
                "bandwidth": int(a["BANDWIDTH"]), "codecs": a.get("CODECS", "").strip('"')}

    def download_rendition(self, url, path):
        playlist = self.fetch(url).decode()
        uris = re.findall(r'#EXT-X-MAP:URI="([^"]+)"', playlist) + \
            [line for line in playlist.splitlines() if line and not line.startswith("#")]
        with open(path, "wb") as f:
            for u in uris:
                f.write(self.fetch(urllib.parse.urljoin(url, u)))
        return len(uris) - 1

    def credit(self):
        with open(os.path.join(self.plat.home, "admin-password")) as f:
            self.ctl("admin", "login", "admin", password=f.read().strip())
        self.ctl("admin", "user", "credit", f"buyer-{self.tag}", CREDIT)

    def refused_before(self):
        p = subprocess.run([self.plat.bin("mediactl"), "play", self.item, "--out", os.path.join(self.tmp.name, "no")],
                           env=self.env("buyer"), capture_output=True, text=True, timeout=60)
        if p.returncode != 4:
            raise StepFailed(f"playing before buying ended with {p.returncode}, expected 4 (denied)")

    def buy(self):
        r = self.ctl("buyer", "buy", self.item)
        return r.get("order_id") or r.get("orderId") or ""

    def download(self):
        lib = os.path.join(self.tmp.name, "library")
        self.ctl("buyer", "library", "download", self.item, "--to", lib, timeout=300)
        files = [os.path.join(d, f) for d, _, fs in os.walk(lib) for f in fs]
        media = max(files, key=os.path.getsize)
        note = self.check_media(media)
        if _sha(media) == _sha(self.film):
            note += ", identical to the upload"
        return note

    def main(self):
        plan = [
            ("start the platform", self.start),
            ("make a film with sound" if not self.film else "find the film", self.make_film),
            ("register a seller", lambda: self.register("seller")),
            ("register a buyer", lambda: self.register("buyer")),
            ("upload the film", self.upload),
            ("first playable moment", lambda: self.wait_event("item.playable")),
            ("all renditions complete", lambda: self.wait_event("job.done")),
            ("play through the client library", self.play_library),
            ("play through HLS", self.play_hls),
            ("refuse the buyer before paying", self.refused_before),
            ("credit the buyer", self.credit),
            ("buy", self.buy),
            ("download, verify and keep", self.download),
        ]
        ok = all(self.step(name, fn) for name, fn in plan)
        if hasattr(self, "follow"):
            self.follow.kill()
            self.follow.wait()
            self.follow.stdout.close()
        url = urllib.parse.urljoin(self.http or "", f"/item/{self.item}") if self.item else None
        if self.as_json:
            print(json.dumps({"ok": ok, "steps": self.steps, "player_url": url, "item": self.item,
                              "renditions": self.renditions}))
        elif ok:
            print(f"watch it: {url} (as seller-{self.tag}, password pw-seller-{self.tag})")
        self.tmp.cleanup()
        return 0 if ok else 1


def _sha(path):
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "blake2b").hexdigest()


def main(plat, film, as_json):
    return Demo(plat, os.path.abspath(film) if film else None, as_json).main()
