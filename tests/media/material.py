"""What the trap files are made from, and how the results are read: pictures that carry their number and a flash now
and then, sound with a beep at each flash.

A picture is eight columns wide: the first quarter of its height shows the bits of its number (white is 1), the second
quarter their opposites, the lower half flashes white on every PULSE-th picture. The beep begins where the flash does.
"""
import array
import hashlib
import json
import math
import os
import shutil
import subprocess

RATE = 25
PULSE = 10  # pictures between flashes; PULSE_AT: the first one
PULSE_AT = 5
HZ = 48000
BIN = os.environ.get("CAUCE_BIN_DIR", "build/dev/bin")
SANITIZED = bool(os.environ.get("CAUCE_TEST_SANITIZED"))


def cache():
    """A folder for what these very scripts make with this very ffmpeg; those of earlier ones are removed."""
    here = os.path.dirname(os.path.abspath(__file__))
    h = hashlib.sha256(run("ffmpeg", "-version"))
    for name in sorted(os.listdir(here)):
        if name.endswith(".py"):
            with open(os.path.join(here, name), "rb") as f:
                h.update(f.read())
    root = os.environ.get("CAUCE_MEDIA_CACHE", "build/media-cache")
    folder = os.path.join(root, h.hexdigest()[:12])
    os.makedirs(folder, exist_ok=True)
    for name in os.listdir(root):
        if name != os.path.basename(folder):
            shutil.rmtree(os.path.join(root, name), ignore_errors=True)
    return folder


def run(*args, **kw):
    """Its output; its errors are told when it fails."""
    r = subprocess.run([str(a) for a in args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=300, **kw)
    if r.returncode:
        raise AssertionError("%s\nended with %d: %s" % (" ".join(map(str, args)), r.returncode, r.stderr.decode(errors="replace")[-2000:]))
    return r.stdout


def ffmpeg(*args):
    return run("ffmpeg", "-nostdin", "-v", "error", "-y", "-threads", "1", *args)


def ffprobe(path, *args):
    return json.loads(run("ffprobe", "-v", "error", "-of", "json", *args, path))


# ---- making ----

def is_pulse(n):
    return n % PULSE == PULSE_AT


def picture(n, w, h, dark=60, light=235):
    """One grey picture, w x h bytes."""
    bits = [n >> (7 - i) & 1 for i in range(8)]
    edge = [w * i // 8 for i in range(9)]

    def row(values):
        return b"".join(bytes([light if v else 16]) * (edge[i + 1] - edge[i]) for i, v in enumerate(values))

    upper = row(bits) * (h // 4) + row([1 - b for b in bits]) * (h // 2 - h // 4)
    return upper + bytes([light if is_pulse(n) else dark]) * (w * (h - h // 2))


def write_pictures(path, numbers, w, h):
    with open(path, "wb") as f:
        for n in numbers:
            f.write(picture(n, w, h))


def write_sound(path, seconds, rate=HZ, channels=2, begin=0.0):
    """PCM with beeps where the pictures flash; it begins `begin` seconds into the film."""
    total = int(seconds * rate)
    mono = array.array("h", bytes(2 * total))
    k = PULSE_AT
    while k / RATE < begin + seconds:
        at = round((k / RATE - begin) * rate)
        for i in range(int(rate * 0.04)):
            if 0 <= at + i < total:
                mono[at + i] = int(20000 * math.sin(2 * math.pi * 1000 * i / rate))
        k += PULSE
    all_channels = array.array("h", bytes(2 * total * channels))
    for c in range(channels):
        all_channels[c::channels] = mono
    with open(path, "wb") as f:
        f.write(all_channels.tobytes())


# ---- what the platform makes of a file ----

def try_files(files, *options, env=None):
    out = run(os.path.join(BIN, "media_try"), *options, *files, env=dict(os.environ, CAUCE_BIN_DIR=BIN, **(env or {})))
    return [json.loads(line) for line in out.decode().splitlines()]


# ---- reading results ----

class Film:
    """A decoded rendition of pictures: numbers, flashes and times."""

    def __init__(self, path, width, height):
        frames = ffprobe(path, "-select_streams", "v", "-show_entries", "frame=pts,pts_time,key_frame")["frames"]
        self.times = [float(f["pts_time"]) for f in frames]
        self.keys = [i for i, f in enumerate(frames) if f["key_frame"]]
        raw = ffmpeg("-i", path, "-map", "0:v", "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "gray", "-")
        size = width * height
        self.width, self.height = width, height
        self.pictures = [raw[i:i + size] for i in range(0, len(raw), size)]
        assert len(self.pictures) == len(self.times), "%d pictures, %d times" % (len(self.pictures), len(self.times))

    def mean(self, p, x0, y0, x1, y1):
        """Of the inner part of a field given in eighths of the width and quarters of the height."""
        w, h = self.width, self.height
        xs = range(int(w * (x0 + 0.25 * (x1 - x0)) / 8), max(int(w * (x1 - 0.25 * (x1 - x0)) / 8), int(w * (x0 + 0.25 * (x1 - x0)) / 8) + 1))
        ys = range(int(h * (y0 + 0.25 * (y1 - y0)) / 4), max(int(h * (y1 - 0.25 * (y1 - y0)) / 4), int(h * (y0 + 0.25 * (y1 - y0)) / 4) + 1))
        return sum(p[y * w + x] for y in ys for x in xs) / (len(xs) * len(ys))

    def number(self, p):
        """-1: not to be read."""
        n = 0
        for i in range(8):
            d = self.mean(p, i, 0, i + 1, 1) - self.mean(p, i, 1, i + 1, 2)
            if abs(d) < 30:
                return -1
            n = n << 1 | (d > 0)
        return n

    def numbers(self):
        return [self.number(p) for p in self.pictures]

    def flashes(self):
        """Times at which one begins."""
        light = [self.mean(p, 0, 2, 8, 4) > 150 for p in self.pictures]
        return [t for i, t in enumerate(self.times) if light[i] and (i == 0 or not light[i - 1])]

    def comb(self, p):
        """Most that two lines in the middle of the lower half differ by."""
        w, h = self.width, self.height
        column = [p[y * w + w // 2] for y in range(h // 2 + 6, h - 6)]
        return max(abs(a - b) for a, b in zip(column, column[1:]))


class Sound:
    """A decoded rendition of sound: its length and where beeps begin, in seconds."""

    def __init__(self, path, priming):
        # Every sample that the packets hold, so that positions are the packets' own.
        raw = ffmpeg("-flags2", "+skip_manual", "-i", path, "-map", "0:a", "-f", "s16le", "-ac", "1", "-ar", HZ, "-")
        self.samples = array.array("h", raw)[priming:]
        self.seconds = len(self.samples) / HZ

    def beeps(self):
        step = HZ // 1000
        loud = [max(map(abs, self.samples[i:i + step]), default=0) for i in range(0, len(self.samples), step)]
        limit = max(loud, default=0) / 4
        if limit < 200:
            return []
        out, last = [], -1000
        for i, v in enumerate(loud):
            if v > limit:
                if i - last > 100:
                    out.append(i / 1000)
                last = i
        return out

    def quietest_join(self, at, span=0.02):
        """Loudness around a moment, for gaps in a steady tone."""
        i = int(at * HZ)
        part = self.samples[max(0, i - int(span * HZ)):i + int(span * HZ)]
        step = HZ // 500
        return min(max(map(abs, part[k:k + step]), default=0) for k in range(0, len(part) - step, step))


def note(text):
    print(text, flush=True)
