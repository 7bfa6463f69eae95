"""Traps: files that players and encoders get wrong. Each is made with the ffmpeg program, then probed and made into
segments by the real codec process; what comes out is decoded and compared with the right result, which the case states:
how long, which pictures in which order at which times, how large, which way up, sound in time with the picture at every
join of segments.

traps_test.py [-k WORD] [--list]; results of ffmpeg are kept in $CAUCE_MEDIA_CACHE.
"""
import concurrent.futures
import hashlib
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time

import boxes
import material as m
from material import PULSE, PULSE_AT, RATE, ffmpeg

SECONDS = 6
N = SECONDS * RATE
W, H = 128, 72
CACHE = m.cache()
X264 = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "18", "-pix_fmt", "yuv420p"]
AAC = ["-c:a", "aac", "-b:a", "96k"]
FLAC = ["-c:a", "flac", "-strict", "-2"]  # where a file cannot say how much of the first packet is to be thrown away

cases = {}
locks, locks_guard = {}, threading.Lock()


def kept(name, make):
    """The file of that name, made once by make(path)."""
    path = os.path.join(CACHE, name)
    with locks_guard:
        lock = locks.setdefault(name, threading.Lock())
    with lock:
        if not os.path.exists(path):
            stem, ext = os.path.splitext(path)
            part = "%s.%d.part%s" % (stem, os.getpid(), ext)
            make(part)
            os.rename(part, path)
    return path


def pictures(n=N, first=0, w=W, h=H):
    return kept("pictures-%d-%d-%dx%d.gray" % (n, first, w, h), lambda p: m.write_pictures(p, range(first, first + n), w, h))


def sound(seconds=SECONDS, rate=m.HZ, channels=2, begin=0.0):
    return kept("sound-%g-%d-%d-%g.pcm" % (seconds, rate, channels, begin), lambda p: m.write_sound(p, seconds, rate, channels, begin))


def video_in(n=N, first=0, w=W, h=H, rate=RATE):
    return ["-f", "rawvideo", "-pix_fmt", "gray", "-s", "%dx%d" % (w, h), "-r", str(rate), "-i", pictures(n, first, w, h)]


def audio_in(seconds=SECONDS, rate=m.HZ, channels=2, begin=0.0):
    return ["-f", "s16le", "-ar", str(rate), "-ac", str(channels), "-i", sound(seconds, rate, channels, begin)]


def encoded(name, *args):
    return kept(name, lambda p: ffmpeg(*args, p))


def base(ext, *video, audio=AAC):
    """The whole film in that container, with a keyframe a second unless said otherwise."""
    video = video or (*X264, "-g", "25")
    key = hashlib.sha256(repr((video, audio)).encode()).hexdigest()[:8]
    sources = [*video_in(), *(audio_in() if audio else [])]
    return encoded("base-%s.%s" % (key, ext), *sources, *video, *(audio or []), "-shortest")


def edited(name, source, change):
    """A copy of the file whose bytes went through change()."""
    def make(p):
        with open(source, "rb") as f, open(p, "wb") as out:
            out.write(change(f.read()))
    return kept(name, make)


# ---- what is right ----

class Right:
    """frames: how many; numbers: which, in order; times: when each is shown; size: of the picture made; seconds; sync:
    beeps and flashes go together; beeps: how many at least; refused: nothing is made, and the reason says this."""

    def __init__(self, numbers=None, times=None, frames=None, size=(W, H), seconds=None, sync=True, beeps=None, refused=None,
                 video=True, audio=True, check=None, near=0.25, loose=False, missing=0):
        self.__dict__.update(locals())


def case(name, **right):
    def add(make):
        assert name not in cases
        cases[name] = (make, Right(**right))
        return make
    return add


def need(ok, what, *args):
    if not ok:
        raise AssertionError(what % args if args else what)


def check_film(film, right, plan, made):
    need(film.width and (film.width, film.height) == right.size, "the picture is %dx%d, not %dx%d", film.width, film.height, *right.size)
    n = len(film.pictures)
    need(n == plan["video"]["n_frames"], "%d pictures decode, %d were planned", n, plan["video"]["n_frames"])
    if right.frames is not None:
        need(n == right.frames, "%d pictures, not %d", n, right.frames)
    numbers = film.numbers()
    if right.numbers is not None:
        want = list(right.numbers)
        wrong = [i for i, (a, b) in enumerate(zip(numbers, want)) if a != b and b is not None]
        need(len(numbers) == len(want), "%d pictures, not %d: %s", len(numbers), len(want), numbers)
        need(len(wrong) <= right.missing, "picture %s is not the right one: %s", wrong[:5], numbers)
    if right.times is not None:
        for i, (a, b) in enumerate(zip(film.times, right.times)):
            need(abs(a - b) <= 0.021, "picture %d is shown at %.3f, not %.3f", i, a, b)
    # Each segment begins with a random access point, at its time.
    grid, at = plan["video"], 0
    for start, _, count in grid["segments"]:
        need(at in film.keys, "segment at picture %d does not begin with a keyframe", at)
        need(abs(film.times[at] - film.times[0] - start / grid["timescale"]) < 0.002, "segment at picture %d begins at %.3f", at, film.times[at])
        at += count
    if right.missing == 0 and not right.loose:
        need(made["dropped"] == 0, "%d pictures were dropped", made["dropped"])


def check_sync(film, heard, right):
    flashes, beeps = film.flashes(), heard.beeps()
    n = right.beeps if right.beeps is not None else max(1, int((right.seconds or SECONDS) / (PULSE / RATE)) - 1)
    matched = 0
    for t in flashes:
        near = min(beeps, key=lambda b: abs(b - t), default=-9)
        if abs(near - t) > 0.020:
            need(right.loose and abs(near - t) > 0.1, "flash at %.3f, nearest beep at %.3f", t, near)
        else:
            matched += 1
    need(matched >= n, "%d beeps go with flashes, of %d wanted: %s and %s", matched, n, flashes, beeps)


def check(path, right, out_dir):
    r = m.try_files([path], "--make", out_dir, "--deadline", 600000 if m.SANITIZED else 60000)[0]
    if right.refused is not None:
        need(r["outcome"] == "rejected", "it is not refused: %s %s", r["outcome"], r["text"])
        need(right.refused in r["text"], "refused because: %s", r["text"])
        return r
    need(r["outcome"] == "ok", "%s: %s", r["outcome"], r["text"])
    plan, made = r["plan"], r["made"]
    kinds = {v["id"]: v for v in plan["renditions"]}
    for name, v in made.items():
        need(v["outcome"] == "ok", "%s: %s: %s", name, v["outcome"], v.get("text"))
    video = next((v for v in made if kinds[v]["kind"] == "video"), None)
    audio = next((v for v in made if kinds[v]["kind"] == "audio"), None)
    need((video is not None) == right.video, "pictures: %s", video)
    need((audio is not None) == right.audio, "sound: %s", audio)
    if right.seconds is not None:
        need(abs(plan["duration_us"] / 1e6 - right.seconds) <= right.near, "%.3f s long, not %.3f", plan["duration_us"] / 1e6, right.seconds)
    film = heard = None
    if video:
        film = m.Film(os.path.join(out_dir, video + ".mp4"), kinds[video]["width"], kinds[video]["height"])
        check_film(film, right, plan, made[video])
    if audio:
        heard = m.Sound(os.path.join(out_dir, audio + ".mp4"), kinds[audio]["priming"])
        want = plan["audio"]["duration"] / m.HZ
        need(want - 0.03 <= heard.seconds <= want + 0.35, "%.3f s of sound decode, %.3f were planned", heard.seconds, want)
    if film and heard and right.sync:
        check_sync(film, heard, right)
    if right.check:
        right.check(r, film, heard)
    return r


# ---- the cases ----

CFR = dict(numbers=range(N), times=[i / RATE for i in range(N)], seconds=SECONDS)


@case("mp4 with B-frames and its index last", **CFR)
def _():
    return base("mp4", *X264, "-g", "50", "-bf", "3")


@case("mp4 with its index first", **CFR)
def _():
    return encoded("faststart.mp4", "-i", base("mp4"), "-c", "copy", "-movflags", "+faststart")


@case("mp4 with signed offsets and no edit list", **CFR)
def _():
    return encoded("signed.mp4", "-i", base("mp4", *X264, "-bf", "3", audio=FLAC), "-c", "copy", "-strict", "-2", "-movflags", "+negative_cts_offsets", "-use_editlist", "0")


for ext in ("mkv", "ts", "flv", "mov"):
    case("the same film as " + ext, **CFR)(
        lambda ext=ext: encoded("same." + ext, "-i", base("mp4", *X264, "-g", "50"), "-c", "copy"))


# ---- variable rate ----

VFR = [i for i in range(N) if i % 7 not in (2, 3, 5) or i % 49 > 30]


def sparse(ext):
    keep = "not(eq(mod(n,7),2)+eq(mod(n,7),3)+eq(mod(n,7),5))+gt(mod(n,49),30)"
    return encoded("vfr." + ext, *video_in(), *audio_in(), "-vf", "select='%s'" % keep, "-fps_mode", "vfr", *X264, "-g", "20", *AAC, "-shortest")


for ext in ("mp4", "mkv"):
    case("variable rate in " + ext, numbers=VFR, times=[i / RATE for i in VFR], seconds=SECONDS, beeps=7, check=None, loose=True)(lambda ext=ext: sparse(ext))


# ---- edit lists ----

@case("empty edit: the picture begins half a second late", frames=N + 12, seconds=SECONDS + 0.48, sync=True,
      numbers=[0] * 12 + list(range(N)), loose=True, beeps=12)
def _():
    v = encoded("silent.mp4", *video_in(), *X264)
    a = encoded("late-beeps.m4a", *audio_in(SECONDS, begin=-0.48), *AAC)
    return encoded("empty-edit.mp4", "-itsoffset", "0.48", "-i", v, "-i", a, "-map", "0", "-map", "1", "-c", "copy")


@case("edit list that skips what is before the cut", numbers=range(40, N), seconds=SECONDS - 1.6, times=[i / RATE for i in range(N - 40)])
def _():
    return encoded("cut.mp4", "-ss", "1.6", "-i", base("mp4", *X264, "-g", "50", "-bf", "2"), "-c", "copy")


def two_parts(data):
    """Plays 0 s..2 s, then 4 s..6 s."""
    for i, scale in ((0, 0), (1, 0)):
        _, body, _ = boxes.mp4_find(data, "moov", "trak#%d" % i, "mdia", "mdhd")
        scale = struct.unpack(">I", data[body + 12:body + 16])[0]
        _, elst, _ = boxes.mp4_find(data, "moov", "trak#%d" % i, "edts", "elst")
        first = struct.unpack(">i", data[elst + 12:elst + 16])[0]
        edits = [(2000, first), (2000, first + 4 * scale)]
        data = boxes.mp4_replace(data, ("moov", "trak#%d" % i, "edts"), boxes.edit_list(edits))
    return data


@case("several edits", numbers=[*range(50), *range(100, 150)], seconds=4, near=0.1)
def _():
    return edited("edits.mp4", base("mp4"), two_parts)


# ---- orientation, shape, formats of pictures ----

for degrees, turn in ((90, "transpose=1"), (180, "hflip,vflip"), (270, "transpose=2")):
    case("turned by %d degrees" % degrees, **dict(CFR, size=(W, H)))(
        lambda degrees=degrees, turn=turn: encoded(
            "turned-%d.mp4" % degrees, "-i",
            encoded("turn-%d.mp4" % degrees, *video_in(), *audio_in(), "-vf", turn, *X264, *AAC, "-shortest"),
            "-c", "copy", "-metadata:s:v:0", "rotate=%d" % degrees))


def no_combs(r, film, heard):
    worst = max(film.comb(p) for p in film.pictures[2:-2])
    need(worst < 45, "lines differ by %d: combs", worst)


def fields(order, codec, ext):
    """50 fields a second whose lower halves are light and dark in turn: combs, unless they are taken apart."""
    def make(p):
        with open(p, "wb") as f:
            for n in range(2 * N):
                f.write(m.picture(n // 2, W, H)[:W * (H // 2)] + bytes([160 if n % 2 else 60]) * (W * (H - H // 2)))
    raw = kept("fields.gray", make)
    filters = "interleave_top" if order == "tff" else "interleave_bottom"
    flags = ["-flags", "+ildct+ilme"] if codec[1] != "libx264" else ["-x264-params", "%s=1" % order]
    return encoded("fields-%s-%s.%s" % (order, codec[1], ext), "-f", "rawvideo", "-pix_fmt", "gray", "-s", "%dx%d" % (W, H), "-r", "50", "-i", raw, *audio_in(),
                   "-vf", "format=yuv420p,tinterlace=" + filters, *codec, *flags, "-field_order", "tt" if order == "tff" else "bb", *AAC, "-shortest")


MPEG2 = ["-c:v", "mpeg2video", "-q:v", "2", "-g", "12"]
for order in ("tff", "bff"):
    for codec, ext in ((X264, "mp4"), (MPEG2, "ts")):
        case("interlaced %s, %s" % (order, codec[1]), numbers=range(N), seconds=SECONDS, sync=False, check=no_combs)(
            lambda order=order, codec=codec, ext=ext: fields(order, codec, ext))


@case("wide pixels", **dict(CFR, size=(2 * W, H)))
def _():
    return base("mp4", *X264, "-aspect", "32/9")


@case("tall pixels", **dict(CFR, size=(W, 2 * H)))
def _():
    return base("mkv", *X264, "-aspect", "8/9")


for name, args, ext in (
        ("10 bits", ["-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p10le"], "mp4"),
        ("4:4:4", ["-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv444p"], "mp4"),
        ("4:4:4 of 10 bits", ["-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=none", "-pix_fmt", "yuv444p10le"], "mkv"),
        ("4:2:2", ["-c:v", "prores_ks", "-pix_fmt", "yuv422p10le"], "mov"),
        ("RGB", ["-c:v", "libx264rgb", "-preset", "veryfast", "-pix_fmt", "rgb24"], "mkv"),
        ("FFV1", ["-c:v", "ffv1"], "mkv"),
        ("HEVC", ["-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=none"], "mp4"),
        ("AV1", ["-c:v", "libsvtav1", "-preset", "12"], "mp4"),
        ("VP9", ["-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8"], "webm"),
        ("Theora", ["-c:v", "libtheora", "-q:v", "8"], "ogg"),
        ("MJPEG", ["-c:v", "mjpeg", "-q:v", "2", "-pix_fmt", "yuvj420p"], "mov"),
        ("MPEG-4 ASP", ["-c:v", "mpeg4", "-q:v", "2"], "avi"),
        ("H.264 with B-frames in AVI", [*X264, "-bf", "2"], "avi"),
        ("MPEG-4 ASP with B-frames", ["-c:v", "mpeg4", "-q:v", "2", "-bf", "2"], "avi")):
    audio = {"webm": ["-c:a", "libopus"], "ogg": ["-c:a", "libvorbis"], "avi": ["-c:a", "pcm_s16le"]}.get(ext, AAC)
    case("pictures: " + name, **CFR)(lambda args=args, ext=ext, audio=audio: base(ext, *args, audio=audio))


def is_sdr(r, film, heard):
    """Tagged as what every screen shows, light is light and dark is dark."""
    for v in r["plan"]["renditions"]:
        need(v["kind"] != "video" or v["lazy"] or v["color"] == [1, 1, 1], "%s is tagged %s", v["id"], v["color"])
    flash = film.mean(film.pictures[PULSE_AT], 0, 2, 8, 4)
    still = film.mean(film.pictures[PULSE_AT + 3], 0, 2, 8, 4)
    need(flash > 170, "a flash has luma %d", flash)
    need(16 <= still < 110, "what is dark has luma %d", still)


for name, trc in (("HDR10", "smpte2084"), ("HLG", "arib-std-b67")):
    case("pictures: " + name, **dict(CFR, check=is_sdr))(
        lambda trc=trc: base("mp4", "-c:v", "libx265", "-preset", "ultrafast", "-pix_fmt", "yuv420p10le", "-x265-params",
                             "log-level=none:colorprim=bt2020:transfer=%s:colormatrix=bt2020nc:hdr10=1:max-cll=1000,400" % trc))


for codec, ext in ((["-c:v", "libvpx", "-deadline", "realtime", "-cpu-used", "8", "-b:v", "1M", "-pix_fmt", "yuv420p"], "mkv"),
                   (["-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv444p"], "mp4")):
    case("odd width and height, " + codec[1], **dict(CFR, size=(130, 70)))(
        lambda codec=codec, ext=ext: encoded("odd-%s.%s" % (codec[1], ext), *video_in(w=131, h=71), *audio_in(), *codec, *AAC, "-shortest"))


# ---- streams ----

def cover():
    return encoded("cover.png", "-f", "lavfi", "-i", "color=red:s=640x640", "-frames:v", "1")


@case("the large one of two pictures", **CFR)
def _():
    small = encoded("small.mp4", "-f", "lavfi", "-i", "testsrc=s=48x28:d=3", *X264)
    return encoded("two-videos.mp4", "-i", small, "-i", base("mp4"), "-map", "0:v", "-map", "1:v", "-map", "1:a", "-c", "copy",
                   "-disposition:v:0", "0", "-disposition:v:1", "0")


@case("the default one of two pictures", **CFR)
def _():
    large = encoded("large.mp4", "-f", "lavfi", "-i", "testsrc=s=192x108:d=3", *X264)
    return encoded("default-video.mkv", "-i", large, "-i", base("mp4"), "-map", "0:v", "-map", "1:v", "-map", "1:a", "-c", "copy",
                   "-disposition:v:0", "0", "-disposition:v:1", "default")


for ext in ("mp4", "mkv"):
    case("cover art beside the film, " + ext, **CFR)(
        lambda ext=ext: encoded("covered." + ext, "-i", cover(), "-i", base("mp4"), "-map", "0", "-map", "1:v", "-map", "1:a", "-c", "copy",
                                "-disposition:v:0", "attached_pic"))


@case("song with cover art", video=False, seconds=SECONDS, near=0.1)
def _():
    return encoded("song.mp3", *audio_in(), "-i", cover(), "-map", "0", "-map", "1", "-c:a", "libmp3lame", "-c:v", "copy", "-disposition:v", "attached_pic")


@case("no sound", audio=False, **CFR)
def _():
    return base("mp4", *X264, "-g", "30", audio=None)


for ext, codec in (("m4a", "aac"), ("mp3", "libmp3lame"), ("flac", "flac"), ("ogg", "libvorbis"), ("wav", "pcm_s16le"), ("mka", "libopus"), ("ac3", "ac3")):
    def heard_all(r, film, heard):
        beeps = heard.beeps()
        need(len(beeps) == 15, "%d beeps, not 15: %s", len(beeps), beeps)
        for i, b in enumerate(beeps):
            want = (PULSE_AT + i * PULSE) / RATE
            need(abs(b - want) <= 0.03, "beep at %.3f, not %.3f", b, want)
    case("sound alone, " + ext, video=False, seconds=SECONDS, near=0.1, check=heard_all)(
        lambda ext=ext, codec=codec: encoded("alone." + ext, *audio_in(), "-c:a", codec))


@case("sound begins late", **dict(CFR, loose=True, beeps=12))
def _():
    a = encoded("from-1.2.mka", *audio_in(SECONDS - 1.2, begin=1.2), *FLAC)
    return encoded("late-sound.mkv", "-i", base("mp4", audio=None), "-itsoffset", "1.2", "-i", a, "-map", "0:v", "-map", "1:a", "-c", "copy")


@case("sound begins early", frames=N + 18, loose=True, seconds=SECONDS + 0.72, beeps=13)
def _():
    a = encoded("from-minus.mka", *audio_in(SECONDS + 0.72, begin=-0.72), *FLAC)
    return encoded("early-sound.mkv", "-itsoffset", "0.72", "-i", base("mp4", audio=None), "-i", a, "-map", "0:v", "-map", "1:a", "-c", "copy")


for name, rate, channels, codec, ext in (("7.1", 48000, 8, "flac", "mkv"), ("7.1 AAC", 48000, 8, "aac", "mp4"), ("5.1", 48000, 6, "ac3", "mkv"),
                                         ("one channel", 44100, 1, "aac", "mp4"), ("8 kHz", 8000, 1, "aac", "mp4"), ("96 kHz", 96000, 2, "flac", "mkv"),
                                         ("35467 Hz", 35467, 2, "pcm_s16le", "mov"), ("44.1 kHz MP3", 44100, 2, "libmp3lame", "mkv"),
                                         ("192 kHz", 192000, 2, "pcm_s24le", "mov")):
    case("sound: " + name, **CFR)(
        lambda rate=rate, channels=channels, codec=codec, ext=ext: encoded(
            "sound-%d-%d-%s.%s" % (rate, channels, codec, ext), *video_in(), *audio_in(rate=rate, channels=channels),
            *X264, "-g", "25", "-c:a", codec, "-shortest"))


# ---- structure ----

for name, flags in (("empty moov", "+frag_keyframe+empty_moov"), ("its index at the end", "+frag_keyframe"), ("a global sidx", "+frag_keyframe+empty_moov+default_base_moof+global_sidx"),
                    ("dash", "+dash+frag_keyframe"), ("default base and no mfra", "+frag_keyframe+empty_moov+default_base_moof+skip_trailer")):
    case("fragmented mp4, " + name, **CFR)(
        lambda flags=flags: encoded("frag-%s.mp4" % flags.replace("+", "-"), "-i", base("mp4", *X264, "-g", "25", "-bf", "2"), "-c", "copy", "-movflags", flags))


@case("one picture", frames=1, audio=False, sync=False, numbers=[7])
def _():
    return encoded("one.mp4", *video_in(1, 7), *X264)


@case("one picture and sound", sync=False, seconds=2, near=0.1)
def _():
    return encoded("one-heard.mp4", *video_in(1, 7), *audio_in(2), *X264, *AAC)


@case("no picture in the film", refused="picture")
def _():
    return edited("none.mp4", encoded("empty.mp4", *video_in(2), *X264, "-movflags", "+frag_keyframe+empty_moov"),
                  lambda d: d[:boxes.mp4_find(d, "moof")[0]])


@case("open groups of pictures", **CFR)
def _():
    return base("ts", *X264, "-g", "25", "-bf", "3", "-x264-params", "open-gop=1:keyint=25:bframes=3:scenecut=0")


@case("open groups of pictures in mp4", **CFR)
def _():
    return base("mp4", *X264, "-g", "25", "-bf", "3", "-x264-params", "open-gop=1:keyint=25:bframes=3:scenecut=0")


for ext in ("ts", "mp4", "mkv"):
    case("intra refresh in " + ext, **CFR)(
        lambda ext=ext: base(ext, *X264, "-g", "25", "-x264-params", "intra-refresh=1:keyint=25:scenecut=0:bframes=0"))


@case("Matroska without cues", **CFR)
def _():
    def make(p):
        with open(p, "wb") as f:
            f.write(ffmpeg("-i", base("mp4"), "-c", "copy", "-f", "matroska", "-"))
    return kept("no-cues.mkv", make)


def from_within(data):
    """Begins in the middle of a packet in the middle of a group of pictures."""
    return data[len(data) * 3 // 10 // 188 * 188 + 50:]


def goes_on(r, film, heard):
    """What can be decoded comes in order, without gaps, after at most a start that is not to be read."""
    numbers = [n for n in film.numbers() if n >= 0]
    need(numbers and numbers[-1] == N - 1, "the end is missing: %s", numbers)
    steps = [b - a for a, b in zip(numbers, numbers[1:])]
    need(set(steps) <= {0, 1}, "pictures out of order: %s", numbers)
    need(len(set(numbers)) >= 70, "only %d different pictures: %s", len(set(numbers)), numbers)


@case("transport stream that begins in the middle", sync=True, loose=True, beeps=7, check=goes_on)
def _():
    return edited("within.ts", base("ts", *X264, "-g", "25", "-bf", "2"), from_within)


@case("transport stream that begins late", **CFR)
def _():
    return encoded("late.ts", "-i", base("mp4", *X264, "-g", "25"), "-c", "copy", "-output_ts_offset", "5000")


@case("transport stream whose clock wraps", **CFR)
def _():
    return encoded("wrap.ts", "-i", base("mp4", *X264, "-g", "25"), "-c", "copy", "-muxdelay", "0", "-output_ts_offset", "95440")


def part(first, n, offset, ext="ts"):
    """Pictures first.. with their sound, on a clock that begins at `offset`."""
    return encoded("part-%d-%d-%s.%s" % (first, n, offset, ext), *video_in(n, first), *audio_in(n / RATE, begin=first / RATE), *X264, "-g", "25", "-bf", "2", *AAC,
                   "-output_ts_offset", offset)


def joined(name, *parts):
    def make(p):
        with open(p, "wb") as out:
            for x in parts:
                with open(x, "rb") as f:
                    out.write(f.read())
    return kept(name, make)


@case("clock that jumps ahead", **CFR)
def _():
    return joined("ahead.ts", part(0, 75, "0"), part(75, 75, "1000"))


@case("clock that jumps back", **CFR)
def _():
    return joined("back.ts", part(0, 75, "600"), part(75, 75, "0"))


@case("clock that jumps again and again", **CFR)
def _():
    return joined("again.ts", *(part(i * 50, 50, o) for i, o in enumerate(("300", "0", "90000"))))


@case("program stream that was joined", **CFR)
def _():
    mpg = [encoded("half-%d.mpg" % i, *video_in(75, 75 * i), *audio_in(3, begin=3.0 * i), "-c:v", "mpeg2video", "-q:v", "2", "-g", "12", "-bf", "2", "-c:a", "mp2") for i in (0, 1)]
    return joined("joined.mpg", *mpg)


def rises(r, film, heard):
    numbers = film.numbers()
    need(all(a <= b for a, b in zip(numbers, numbers[1:])), "pictures out of order: %s", numbers)
    need(all(abs(n / RATE - t) < 0.09 for n, t in zip(numbers, film.times)), "pictures at the wrong times: %s", numbers)


@case("pictures whose time stamps repeat", seconds=SECONDS, sync=False, loose=True, check=rises)
def _():
    return encoded("repeat.mkv", *video_in(), *audio_in(), "-vf", "settb=1/1000,setpts='floor(N/2)*80'", "-fps_mode", "passthrough", "-c:v", "ffv1", *FLAC, "-enc_time_base", "1/1000")


# ---- cut off ----

def cut_to(share):
    return lambda data: data[:int(len(data) * share)]


def as_far_as(r, film, heard):
    n = len(film.pictures)
    need(N * 0.4 < n < N * 0.8, "%d pictures of a file that holds 60 %% of %d", n, N)
    numbers = film.numbers()
    need(numbers[:n - 5] == list(range(n - 5)), "not the first ones: %s", numbers)
    # Not padded far beyond the pictures that are there.
    distinct = len(set(numbers))
    need(distinct >= n - 4, "%d pictures made of %d", n, distinct)


for ext in ("mkv", "ts", "flv"):
    case("cut off, " + ext, beeps=6, loose=True, check=as_far_as)(
        lambda ext=ext: edited("cut-off." + ext, encoded("same." + ext, "-i", base("mp4", *X264, "-g", "50"), "-c", "copy"), cut_to(0.6)))


@case("cut off, mp4 with its index first", beeps=6, loose=True, check=as_far_as)
def _():
    return edited("cut-off-first.mp4", encoded("faststart.mp4", "-i", base("mp4"), "-c", "copy", "-movflags", "+faststart"), cut_to(0.6))


@case("cut off, fragmented mp4", beeps=6, loose=True, check=as_far_as)
def _():
    return edited("cut-off-frag.mp4", encoded("frags.mp4", "-i", base("mp4"), "-c", "copy", "-movflags", "+frag_keyframe+empty_moov"), cut_to(0.6))


@case("cut off, mp4 with its index last", refused="")
def _():
    return edited("cut-off-last.mp4", base("mp4"), cut_to(0.6))


# ---- three hours ----

LONG = 1800  # times the short film


def short_film():
    return encoded("short.mp4", "-i", base("mp4"), "-c:v", "libx264", "-preset", "veryfast", "-crf", "32", "-g", "50", "-c:a", "aac", "-b:a", "24k", "-ac", "1")


def long_film(ext):
    if ext == "no-cues.mkv":
        def make(p):
            with open(p, "wb") as f:
                f.write(ffmpeg("-i", long_film("mkv"), "-c", "copy", "-f", "matroska", "-"))
        return kept("long-no-cues.mkv", make)
    return encoded("long." + ext, "-stream_loop", LONG - 1, "-i", short_film(), "-c", "copy")


def check_long(ext):
    """Planned within seconds in little memory; a piece of the middle touches little of the file."""
    path, out = long_film(ext), tempfile.mkdtemp(prefix="trap-", dir=CACHE)
    try:
        r = m.try_files([path], "--make", out, "--segment", "1300")[0]
        need(r["outcome"] == "ok", "%s: %s", r["outcome"], r["text"])
        plan = r["plan"]
        need(abs(plan["duration_us"] / 1e6 - LONG * SECONDS) < 60, "%.0f s long", plan["duration_us"] / 1e6)
        need(plan["video"]["n_frames"] == LONG * N, "%d pictures", plan["video"]["n_frames"])
        if not m.SANITIZED:
            need(r["cpu_us"] < 10e6, "the plan cost %.1f s", r["cpu_us"] / 1e6)
            need(r["peak_rss_bytes"] < 256 << 20, "the plan took %d MiB", r["peak_rss_bytes"] >> 20)
        index = 10 << 20 if ext == "mp4" else 0
        for name, v in r["made"].items():
            need(v["outcome"] == "ok", "%s: %s: %s", name, v["outcome"], v.get("text"))
            need(v["fetched_bytes"] <= index + (6 << 20), "%s: %.1f MiB were read", name, v["fetched_bytes"] / 2**20)
            need(m.SANITIZED or v["cpu_us"] < 3e6, "%s: cost %.1f s", name, v["cpu_us"] / 1e6)
            need(m.SANITIZED or v["peak_rss_bytes"] < 256 << 20, "%s: took %d MiB", name, v["peak_rss_bytes"] >> 20)
        rung = next(v for v in plan["renditions"] if v["id"] in r["made"] and v["kind"] == "video")
        film = m.Film(os.path.join(out, rung["id"] + ".mp4"), rung["width"], rung["height"])
        first = sum(s[2] for s in plan["video"]["segments"][:1300])
        want = [(first + i) % N for i in range(len(film.pictures))]
        need(film.numbers() == want, "not the pictures from %d on: %s", first % N, film.numbers())
    finally:
        shutil.rmtree(out, ignore_errors=True)


for ext in ("mp4", "mkv", "no-cues.mkv", "ts"):
    cases["three hours, " + ext] = (lambda ext=ext: check_long(ext), None)


# ---- running them ----

def run_case(name):
    make, right = cases[name]
    out = tempfile.mkdtemp(prefix="trap-", dir=CACHE)
    began = time.monotonic()
    try:
        made = make()
        if right:
            check(made, right, out)
        return name, None, time.monotonic() - began
    except (AssertionError, subprocess.TimeoutExpired) as e:
        return name, str(e) or repr(e), time.monotonic() - began
    finally:
        shutil.rmtree(out, ignore_errors=True)


def main():
    words = sys.argv[sys.argv.index("-k") + 1:] if "-k" in sys.argv else []
    names = [n for n in cases if not words or any(w in n for w in words)]
    if "--list" in sys.argv:
        print("\n".join(names))
        return 0
    bad = 0
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for name, why, took in pool.map(run_case, names):
            m.note("%s %s (%.1f s)%s" % ("FAIL" if why else "ok  ", name, took, ": " + why if why else ""))
            bad += why is not None
    m.note("%d cases, %d failed" % (len(names), bad))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
