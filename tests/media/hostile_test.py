"""Hostile files: whatever is in them, the codec process answers in time and in little memory, with a reason that a
person can read, and is never ended by a signal. What it makes of them opens no file and no socket: strace tells.

hostile_test.py [-k WORD] [--list]; files are made into $CAUCE_MEDIA_CACHE.
"""
import collections
import concurrent.futures
import os
import random
import shutil
import struct
import sys
import tempfile
import zlib

import boxes
import material as m
import traps_test as traps
from traps_test import AAC, X264, base, edited, encoded, kept, need, video_in, audio_in
from material import ffmpeg

VERDICT_MS = 10000
MEMORY = 512 << 20
PATIENCE = 10 if m.SANITIZED else 3  # times the promised deadline, for busy machines
SECRET = "file:///etc/passwd"

files = collections.OrderedDict()  # name: (make, what must come of it)


def hostile(name, want="any"):
    """want: "refused" (rejected or limit), "plays" or "any" of these."""
    def add(make):
        assert name not in files
        files[name] = (make, want)
        return make
    return add


def written(name, data):
    def make(p):
        with open(p, "wb") as f:
            f.write(data() if callable(data) else data)
    return kept("hostile-" + name, make)


def short(ext, *video, audio=AAC):
    """Two seconds in that container."""
    video = video or (*X264, "-g", "12", "-bf", "2")
    return encoded("hostile-short-%s.%s" % (video[1], ext), *video_in(50), *(audio_in(2) if audio else []), *video, *(audio or []), "-shortest")


def read(path):
    with open(path, "rb") as f:
        return f.read()


CONTAINERS = {
    "mp4": lambda: short("mp4"), "mkv": lambda: short("mkv"), "ts": lambda: short("ts"), "flv": lambda: short("flv"),
    "avi": lambda: short("avi", "-c:v", "mpeg4", "-q:v", "3", audio=["-c:a", "libmp3lame"]),
    "ogg": lambda: short("ogg", "-c:v", "libtheora", audio=["-c:a", "libvorbis"]),
    "webm": lambda: short("webm", "-c:v", "libvpx", "-deadline", "realtime", "-cpu-used", "8", audio=["-c:a", "libopus"]),
    "mpg": lambda: short("mpg", "-c:v", "mpeg2video", audio=["-c:a", "mp2"]),
    "frag.mp4": lambda: encoded("hostile-frag.mp4", "-i", short("mp4"), "-c", "copy", "-movflags", "+frag_keyframe+empty_moov"),
    "hevc.mp4": lambda: short("mp4", "-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=none"),
    "mp3": lambda: encoded("hostile-sound.mp3", *audio_in(2), "-c:a", "libmp3lame"),
    "flac": lambda: encoded("hostile-sound.flac", *audio_in(2), "-c:a", "flac"),
    "wav": lambda: encoded("hostile-sound.wav", *audio_in(2), "-c:a", "pcm_s16le"),
    "ac3": lambda: encoded("hostile-sound.ac3", *audio_in(2), "-c:a", "ac3"),
    "gif": lambda: encoded("hostile-anim.gif", *video_in(20)),
}

# ---- cut off and changed ----

for ext, source in CONTAINERS.items():
    for n in (1, 16, 120, 1500):
        hostile("first %d bytes of %s" % (n, ext))(lambda ext=ext, source=source, n=n: edited("hostile-first-%d.%s" % (n, ext), source(), lambda d: d[:n]))


def mutated(data, share, seed):
    r = random.Random(seed)
    out = bytearray(data)
    for _ in range(max(1, int(len(out) * share))):
        out[r.randrange(len(out))] = r.randrange(256)
    return bytes(out)


def flipped_head(data, seed):
    """Bits of the first and last kilobytes, where indices are."""
    r = random.Random(seed)
    out = bytearray(data)
    for _ in range(12):
        at = r.randrange(min(1500, len(out)))
        if r.random() < 0.5:
            at = len(out) - 1 - at
        out[at] ^= 1 << r.randrange(8)
    return bytes(out)


for ext, source in CONTAINERS.items():
    for i, share in enumerate((0.00005, 0.001, 0.02)):
        hostile("%s with %g %% of its bytes changed" % (ext, share * 100))(
            lambda ext=ext, source=source, i=i, share=share: edited("hostile-mutated-%d.%s" % (i, ext), source(), lambda d: mutated(d, share, 7 * i + 1)))
    for seed in range(3):
        hostile("%s with flipped bits in its index, %d" % (ext, seed))(
            lambda ext=ext, source=source, seed=seed: edited("hostile-flipped-%d.%s" % (seed, ext), source(), lambda d: flipped_head(d, seed)))

# ---- files that name other files ----

TEXTS = {
    "m3u8": "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n#EXT-X-MAP:URI=\"%s\"\n#EXT-X-KEY:METHOD=AES-128,URI=\"http://127.0.0.1:9/k\"\n#EXTINF:10,\n../../../etc/passwd\n#EXT-X-ENDLIST\n" % SECRET,
    "m3u": "/etc/passwd\nhttp://127.0.0.1:9/a.mp3\n",
    "ffconcat": "ffconcat version 1.0\nfile '/etc/passwd'\nfile 'hostile-concat.txt'\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9999 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    "mpd": "<?xml version=\"1.0\"?><MPD xmlns=\"urn:mpeg:dash:schema:mpd:2011\" type=\"static\"><Period><AdaptationSet><Representation><BaseURL>%s</BaseURL></Representation></AdaptationSet></Period></MPD>" % SECRET,
    "svg": "<svg xmlns=\"http://www.w3.org/2000/svg\"><image href=\"%s\" width=\"9\" height=\"9\"/></svg>" % SECRET,
    "ffmetadata": ";FFMETADATA1\ntitle=x\n", "srt": "1\n00:00:00,000 --> 00:00:05,000\n<img src=\"%s\">\n" % SECRET,
    "ass": "[Script Info]\nScriptType: v4.00+\n[Fonts]\nfontname: ../../../etc/passwd\n[Events]\n",
    "smil": "<smil><body><video src=\"%s\"/></body></smil>" % SECRET, "asx": "<asx version=\"3.0\"><entry><ref href=\"%s\"/></entry></asx>" % SECRET,
    "idx": "# VobSub index file, v7\nsize: 720x576\nid: en, index: 0\ntimestamp: 00:00:01:000, filepos: 000000000\n",
    "imf": "<?xml version=\"1.0\"?><CompositionPlaylist xmlns=\"http://www.smpte-ra.org/schemas/2067-3/2013\"></CompositionPlaylist>",
    "rtsp": "rtsptext\nrtsp://127.0.0.1:9/\n", "html": "<!doctype html><html><body><script>alert(1)</script></body></html>",
    "text": "It was a dark and stormy night; the rain fell in torrents, except at intervals.\n" * 100,
}
for kind, text in TEXTS.items():
    for ext in (kind, "mp4"):
        hostile("%s named .%s" % (kind, ext), "refused")(lambda kind=kind, text=text, ext=ext: written("%s.%s" % (kind, ext) if ext != kind else "text." + kind, text.encode()))

for kind, magic in (("elf", b"\x7fELF\x02\x01\x01" + bytes(4000)), ("zip", b"PK\x03\x04\x14" + bytes(4000)), ("pdf", b"%PDF-1.7\n" + b"x" * 4000),
                    ("zeros", bytes(300000)), ("ones", b"\xff" * 300000), ("noise", random.Random(5).randbytes(300000)), ("asf", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\x00\xaa\x00\x62\xce\x6c" + bytes(4000)),
                    ("exr", b"\x76\x2f\x31\x01" + bytes(4000)), ("swf", b"FWS\x09" + bytes(4000))):
    hostile(kind, "refused")(lambda kind=kind, magic=magic: written(kind + ".mp4", magic))


def external_data(data):
    """The picture's bytes are said to lie in another file."""
    dref = boxes.full_box("dref", 0, 0, struct.pack(">I", 1) + boxes.full_box("url ", 0, 0, SECRET.encode() + b"\0"))
    return boxes.mp4_replace(data, ("moov", "trak#0", "mdia", "minf", "dinf", "dref"), dref)


def alias_data(data):
    """The same as old QuickTime says it: an alias record with a path."""
    path = b"/etc/passwd"
    record = bytearray(150)
    struct.pack_into(">H", record, 4, 150)
    record[10] = 4
    record[11:15] = b"disk"
    record[50] = len(path)
    record[51:51 + len(path)] = path
    record += struct.pack(">HH", 2, len(path)) + path + b"\0" + struct.pack(">HH", 0xffff, 0)
    dref = boxes.full_box("dref", 0, 0, struct.pack(">I", 1) + boxes.full_box("alis", 0, 0, bytes(record)))
    return boxes.mp4_replace(data, ("moov", "trak#0", "mdia", "minf", "dinf", "dref"), dref)


hostile("mp4 whose data lie elsewhere")(lambda: edited("hostile-url.mp4", short("mp4"), external_data))
hostile("QuickTime with an alias")(lambda: edited("hostile-alias.mov", short("mov"), alias_data))


def linked_segment(data):
    """Matroska that says another file comes before and after it, and embeds a playlist as an attachment."""
    names = boxes.ebml(b"\x3c\x83\xab", b"/etc/passwd") + boxes.ebml(b"\x3e\x83\xbb", b"/etc/passwd") + boxes.ebml(b"\x3e\xb9\x23", bytes(16))
    at = data.index(b"\x15\x49\xa9\x66")  # Info
    size = data[at + 4]
    n = 8 - size.bit_length() + 1 if size else 9
    body = int.from_bytes(data[at + 4:at + 4 + n], "big") & ((1 << 7 * n) - 1)
    info = boxes.ebml(b"\x15\x49\xa9\x66", data[at + 4 + n:at + 4 + n + body] + names)
    seg = data.index(b"\x18\x53\x80\x67") + 4
    out = data[:at] + info + data[at + 4 + n + body:]
    return out[:seg] + b"\x01" + b"\xff" * 7 + out[seg + 8:]  # of unknown size: positions moved


hostile("Matroska linked to other files", "plays")(lambda: edited("hostile-linked.mkv", short("mkv"), linked_segment))


@hostile("Matroska with a playlist attached", "plays")
def _():
    return encoded("hostile-attached.mkv", "-i", short("mkv"), "-c", "copy", "-attach", written("attach.m3u8", TEXTS["m3u8"].encode()), "-metadata:s:t", "mimetype=application/vnd.apple.mpegurl")


# ---- too large ----

def png(w, h, colour=0, rows=None):
    """A valid PNG of one bit a pixel, all zeros: kilobytes for any size."""
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    line = bytes(1 + (w * (3 if colour == 2 else 1) * (8 if colour == 2 else 1) + 7) // 8)
    c = zlib.compressobj(9)
    data = b"".join(c.compress(line * 64) for _ in range((h if rows is None else rows) // 64)) + c.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, 8 if colour == 2 else 1, colour, 0, 0, 0)) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def one_sample_mov(codec, w, h, sample):
    """A film of one coded picture, whatever that picture is."""
    ftyp = boxes.box("ftyp", b"qt  \0\0\0\0qt  ")
    mdat = boxes.box("mdat", sample)
    entry = boxes.box(codec, bytes(6) + struct.pack(">H", 1) + bytes(16) + struct.pack(">HH", min(w, 65535), min(h, 65535)) + struct.pack(">IIIH", 0x480000, 0x480000, 0, 1) + bytes(32) + struct.pack(">Hh", 24, -1))
    stbl = boxes.box("stbl", boxes.full_box("stsd", 0, 0, struct.pack(">I", 1) + entry) + boxes.full_box("stts", 0, 0, struct.pack(">III", 1, 1, 1000)) +
                     boxes.full_box("stsc", 0, 0, struct.pack(">IIII", 1, 1, 1, 1)) + boxes.full_box("stsz", 0, 0, struct.pack(">III", 0, 1, len(sample))) +
                     boxes.full_box("stco", 0, 0, struct.pack(">II", 1, len(ftyp) + 8)))
    dinf = boxes.box("dinf", boxes.full_box("dref", 0, 0, struct.pack(">I", 1) + boxes.full_box("url ", 0, 1, b"")))
    minf = boxes.box("minf", boxes.full_box("vmhd", 0, 1, bytes(8)) + dinf + stbl)
    mdia = boxes.box("mdia", boxes.full_box("mdhd", 0, 0, struct.pack(">IIIII", 0, 0, 1000, 1000, 0)) + boxes.full_box("hdlr", 0, 0, b"mhlrvide" + bytes(13)) + minf)
    matrix = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    tkhd = boxes.full_box("tkhd", 0, 7, struct.pack(">IIIII", 0, 0, 1, 0, 1000) + bytes(16) + matrix + struct.pack(">II", min(w, 65535) << 16 & 0xffffffff, min(h, 65535) << 16 & 0xffffffff))
    mvhd = boxes.full_box("mvhd", 0, 0, struct.pack(">IIII", 0, 0, 1000, 1000) + bytes(12) + matrix + bytes(24) + struct.pack(">I", 2))
    return ftyp + mdat + boxes.box("moov", mvhd + boxes.box("trak", tkhd + mdia))


for w, h in ((16000, 16000), (65535, 65535), (30000, 2), (1, 60000)):
    hostile("PNG of %dx%d as a film" % (w, h), "refused")(lambda w=w, h=h: written("png-%dx%d.mov" % (w, h), lambda: one_sample_mov("png ", w, h, png(w, h, rows=min(h, 16000)))))
    hostile("PNG of %dx%d behind a small header" % (w, h))(lambda w=w, h=h: written("png-lie-%dx%d.mov" % (w, h), lambda: one_sample_mov("png ", 64, 64, png(w, h, rows=min(h, 16000)))))


def jpeg_of(w, h):
    data = bytearray(ffmpeg(*video_in(1), "-frames:v", "1", "-c:v", "mjpeg", "-f", "mjpeg", "-"))
    at = data.index(b"\xff\xc0")
    struct.pack_into(">HH", data, at + 5, h, w)
    return bytes(data)


hostile("JPEG of 65500x65500 as a film", "refused")(lambda: written("jpeg.mov", lambda: one_sample_mov("jpeg", 65500, 65500, jpeg_of(65500, 65500))))
hostile("JPEG of 65500x65500 behind a small header")(lambda: written("jpeg-lie.mov", lambda: one_sample_mov("jpeg", 64, 64, jpeg_of(65500, 65500))))
hostile("GIF with a canvas of 65535x65535", "refused")(lambda: edited("hostile-canvas.gif", CONTAINERS["gif"](), lambda d: d[:6] + b"\xff\xff\xff\xff" + d[10:]))


def vp8_size(data):
    out = bytearray(data)
    at = out.index(b"\x9d\x01\x2a")
    struct.pack_into("<HH", out, at + 3, 16383, 16383)
    return bytes(out)


hostile("VP8 frame of 16383x16383")(lambda: edited("hostile-vp8.webm", CONTAINERS["webm"](), vp8_size))


@hostile("black film of 8192x4320")
def _():
    return encoded("hostile-8k.mp4", "-f", "lavfi", "-i", "color=black:s=8192x4320:r=10:d=0.5", "-c:v", "libx264", "-preset", "ultrafast", "-bf", "0", "-refs", "1", "-pix_fmt", "yuv420p")


@hostile("song with a PNG of 16000x16000 as its cover", "plays")
def _():
    cover = written("cover-bomb.png", lambda: png(16000, 16000))
    def make(p):
        tag = b"APIC"
        body = b"\0image/png\0\x03\0" + read(cover)
        frame = tag + struct.pack(">I", len(body)) + b"\0\0" + body
        n = len(frame)
        size = bytes([n >> 21 & 127, n >> 14 & 127, n >> 7 & 127, n & 127])
        with open(p, "wb") as f:
            f.write(b"ID3\x03\0\0" + size + frame + read(CONTAINERS["mp3"]()))
    return kept("hostile-cover.mp3", make)


# ---- too many, too long, too deep ----

@hostile("Matroska with 300 tracks")
def _():
    lines = ["-i", short("mkv")] + ["-map", "0:v", "-map", "0:a"] * 150
    return encoded("hostile-tracks.mkv", *lines, "-c", "copy", "-t", "0.3")


@hostile("mp4 with 300 tracks")
def _():
    return encoded("hostile-tracks.mp4", "-i", short("mp4"), *["-map", "0:v", "-map", "0:a"] * 150, "-c", "copy", "-t", "0.3")


@hostile("transport stream with 200 programs")
def _():
    r = random.Random(3)
    pat = b"".join(struct.pack(">HH", i, 0xe000 | (0x100 + i)) for i in range(1, 41))
    def section(table, ident, body):
        s = struct.pack(">BH", table, 0xb000 | (len(body) + 9)) + struct.pack(">HBBB", ident, 0xc1, 0, 0) + body
        crc = 0xffffffff
        for b in s:
            crc ^= b << 24
            for _ in range(8):
                crc = (crc << 1 ^ 0x04c11db7 if crc & 0x80000000 else crc << 1) & 0xffffffff
        return s + struct.pack(">I", crc)
    def packet(pid, payload, start=True):
        return (struct.pack(">BHB", 0x47, (0x4000 if start else 0) | pid, 0x10) + (b"\0" if start else b"") + payload).ljust(188, b"\xff")[:188]
    def make():
        out = packet(0, section(0, 1, pat))
        for i in range(1, 41):
            streams = b"".join(struct.pack(">BHH", r.choice([2, 3, 15, 27, 36, 6]), 0xe000 | (0x400 + i * 30 + k), 0xf000) for k in range(30))
            out += packet(0x100 + i, section(2, i, struct.pack(">HH", 0xe000 | 0x1ff, 0xf000) + streams))
        return out * 3 + read(short("ts"))
    return written("programs.ts", make)


hostile("mp4 with a title of 20 MiB", "plays")(lambda: edited("hostile-title.mp4", short("mp4"), lambda d: grow_moov(d, boxes.box("udta", boxes.full_box("meta", 0, 0,
    boxes.full_box("hdlr", 0, 0, b"\0\0\0\0mdirappl" + bytes(9)) + boxes.box("ilst", boxes.box("\xa9nam", boxes.box("data", struct.pack(">II", 1, 0) + b"A" * (20 << 20)))))))))


def grow_moov(data, extra):
    begin, body, end = boxes.mp4_find(data, "moov")
    need(end == len(data), "the index is not last")
    return data[:begin] + boxes.box("moov", data[body:end] + extra)


hostile("mp4 with boxes 20000 deep")(lambda: edited("hostile-deep.mp4", short("mp4"), lambda d: grow_moov(d, nest(20000))))


def nest(n):
    out = b""
    return b"".join(struct.pack(">I4s", 8 * (n - i), b"udta" if i % 2 else b"trak") for i in range(n)) + out


@hostile("Matroska with a tag of 30 MiB")
def _():
    tag = boxes.ebml(b"\x12\x54\xc3\x67", boxes.ebml(b"\x73\x73", boxes.ebml(b"\x67\xc8", boxes.ebml(b"\x45\xa3", b"TITLE") + boxes.ebml(b"\x44\x87", b"A" * (30 << 20)))))
    return written("tag.mkv", lambda: unknown_size(read(short("mkv"))) + tag)


def unknown_size(data):
    at = data.index(b"\x18\x53\x80\x67") + 4
    return data[:at] + b"\x01" + b"\xff" * 7 + data[at + 8:]


@hostile("Matroska with 40 MiB attached", "plays")
def _():
    return encoded("hostile-attachment.mkv", "-i", short("mkv"), "-c", "copy", "-attach", written("font.ttf", lambda: bytes(40 << 20)), "-metadata:s:t", "mimetype=font/ttf")


hostile("Matroska nested 20000 deep")(lambda: written("deep.mkv", lambda: unknown_size(read(short("mkv"))) + b"\x1f\x43\xb6\x75\x01\xff\xff\xff\xff\xff\xff\xff" * 20000))
hostile("Matroska whose element claims exabytes")(lambda: written("claims.mkv", lambda: unknown_size(read(short("mkv"))) + boxes.ebml(b"\x12\x54\xc3\x67", b"", (1 << 55) - 2)))


def table(name, body):
    return lambda: edited("hostile-%s-%08x.mp4" % (name, zlib.crc32(body)), short("mp4"), lambda d: boxes.mp4_replace(d, ("moov", "trak#0", "mdia", "minf", "stbl", name), boxes.full_box(name, 0, 0, body)))


for name, body, what in (
        ("stts", struct.pack(">I", 0xffffffff), "claims 4 G rows"), ("stts", struct.pack(">III", 1, 0xffffffff, 1), "gives one row 4 G pictures"),
        ("stts", struct.pack(">III", 1, 50, 0x7fffffff), "shows each picture for hours"), ("stts", struct.pack(">III", 1, 50, 0), "shows each picture for no time"),
        ("stts", struct.pack(">III", 1, 50, 1), "has 12800 pictures a second"), ("stts", struct.pack(">III", 1, 50, 0xffffff00), "goes back in time"),
        ("stts", struct.pack(">IIIII", 2, 49, 512, 1, 12800 * 3600 * 30), "stands still for 30 hours"),
        ("stsz", struct.pack(">II", 0, 0xffffffff), "claims 4 G sizes"), ("stsz", struct.pack(">II", 1, 0x0fffffff), "has 256 M pictures of a byte"),
        ("stsz", struct.pack(">II", 0x7fffffff, 50), "has pictures of 2 GiB"), ("stco", struct.pack(">I", 0xffffffff), "claims 4 G chunks"),
        ("stco", struct.pack(">II", 1, 0xfffffff0), "has a chunk behind the end"), ("stsc", struct.pack(">IIII", 1, 1, 0xffffffff, 1), "has 4 G pictures a chunk"),
        ("ctts", struct.pack(">I", 0xffffffff), "claims 4 G offsets"), ("ctts", struct.pack(">III", 1, 0x7fffffff, 5), "gives one row 2 G offsets"),
        ("ctts", struct.pack(">III", 1, 50, 0x7fffffff), "shows pictures days late"), ("stss", struct.pack(">I", 0xffffffff), "claims 4 G keyframes")):
    hostile("mp4 whose %s %s" % (name, what))(table(name, body))


def scaled(scale, duration):
    def change(d):
        for path in (("moov", "trak#0", "mdia", "mdhd"), ("moov", "mvhd")):
            d = boxes.mp4_patch(d, path, 12, struct.pack(">II", scale, duration))
        return d
    return change


for scale, duration in ((0, 0), (1, 0x7fffffff), (0x7fffffff, 1), (0xffffffff, 0xffffffff)):
    hostile("mp4 with time scale %d and duration %d" % (scale, duration))(lambda scale=scale, duration=duration: edited("hostile-scale-%d.mp4" % scale, short("mp4"), scaled(scale, duration)))

for sar in ("1/65535", "65535/1", "0/1"):
    hostile("pixels of shape " + sar, "plays")(lambda sar=sar: encoded("hostile-sar-%s.mp4" % sar.replace("/", "-"), "-i", short("mp4"), "-c", "copy", "-bsf:v", "h264_metadata=sample_aspect_ratio=" + sar))


@hostile("edit list of 50000 rows")
def _():
    return edited("hostile-edits.mp4", short("mp4"), lambda d: boxes.mp4_replace(d, ("moov", "trak#0", "edts"), boxes.edit_list([(1, 1024 + i % 50) for i in range(50000)])))


@hostile("edit list that loops one second for years")
def _():
    return edited("hostile-loops.mp4", short("mp4"), lambda d: boxes.mp4_replace(d, ("moov", "trak#0", "edts"), boxes.edit_list([(0x7fffffff, 1024)] * 30)))


def jump_clusters(step):
    """Each cluster of a Matroska file `step` ms after the one before."""
    def change(d):
        out, at, k = bytearray(d), 0, 0
        while True:
            at = out.find(b"\x1f\x43\xb6\x75", at)
            if at < 0:
                return bytes(out)
            t = out.find(b"\xe7", at, at + 20)
            n = out[t + 1] & 0x7f
            limit = (1 << 8 * n) - 1
            out[t + 2:t + 2 + n] = min(limit, k * step).to_bytes(n, "big")
            k += 1
            at += 4
    return change


@hostile("Matroska of pictures hours apart")
def _():
    source = encoded("hostile-clusters.mkv", "-i", short("mkv", *X264, "-g", "5"), "-c", "copy", "-cluster_time_limit", "200", "-output_ts_offset", "70000")
    return edited("hostile-hours.mkv", source, jump_clusters(3600 * 1000 * 3))


@hostile("transport stream whose clock jumps 140 times", "refused")
def _():
    a, b = traps.part(0, 10, "0"), traps.part(10, 10, "5000")
    return written("jumps.ts", lambda: (read(a) + read(b)) * 70)


@hostile("a million pictures in a small file")
def _():
    def change(d):
        n = 1 << 20
        sizes = boxes.full_box("stsz", 0, 0, struct.pack(">II", 1, n))
        d = boxes.mp4_replace(d, ("moov", "trak#0", "mdia", "minf", "stbl", "stsz"), sizes)
        d = boxes.mp4_replace(d, ("moov", "trak#0", "mdia", "minf", "stbl", "stts"), boxes.full_box("stts", 0, 0, struct.pack(">III", 1, n, 300)))
        return boxes.mp4_replace(d, ("moov", "trak#0", "mdia", "minf", "stbl", "stsc"), boxes.full_box("stsc", 0, 0, struct.pack(">IIII", 1, 1, n, 1)))
    return edited("hostile-million.mp4", short("mp4"), change)


# ---- what came of it ----

def judge(r, want):
    need(r["outcome"] in ("ok", "rejected", "limit"), "%s: %s", r["outcome"], r["text"])
    refused = r["outcome"] != "ok"
    need(not refused or len(r["text"]) >= 10, "no reason that one could read: '%s'", r["text"])
    need(want != "refused" or refused, "it was not refused")
    need(want != "plays" or not refused, "it was refused: %s", r["text"])
    need(r["most_ms"] < VERDICT_MS * PATIENCE, "the verdict took %d ms", r["most_ms"])
    need(m.SANITIZED or r["peak_rss_bytes"] <= MEMORY, "it took %d MiB", r["peak_rss_bytes"] >> 20)
    for name, v in r.get("made", {}).items():
        need(v["outcome"] in ("ok", "rejected", "limit", "timeout"), "%s: %s: %s", name, v["outcome"], v.get("text"))
    need(r.get("images", "ok") in ("ok", "rejected", "limit", "timeout"), "pictures: %s", r.get("images"))


def check_some(names):
    """(name, what went wrong or None, what came of it) for each."""
    out = tempfile.mkdtemp(prefix="hostile-", dir=traps.CACHE)
    try:
        results = m.try_files([files[n][0]() for n in names], "--make", out, "--segment", "0", "--images", "--deadline", VERDICT_MS * PATIENCE)
        told = []
        for name, r in zip(names, results):
            try:
                judge(r, files[name][1])
                told.append((name, None, r))
            except AssertionError as e:
                told.append((name, str(e), r))
        return told
    finally:
        shutil.rmtree(out, ignore_errors=True)


def check_all(names):
    """How many failed, after telling."""
    bad = 0
    groups = [names[i:i + 12] for i in range(0, len(names), 12)]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for told in pool.map(check_some, groups):
            for name, why, r in told:
                what = "%s%s" % (r["outcome"], ": " + r["text"] if r["text"] else "")
                m.note("%s %s: %s (%d ms, %d MiB)" % ("FAIL" if why else "ok  ", name, "%s [%s]" % (why, what) if why else what, r["most_ms"], r["peak_rss_bytes"] >> 20))
                bad += why is not None
    return bad


def main():
    words = sys.argv[sys.argv.index("-k") + 1:] if "-k" in sys.argv else []
    names = [n for n in files if not words or any(w in n for w in words)]
    if "--list" in sys.argv:
        print("\n".join(names))
        return 0
    bad = check_all(names)
    m.note("%d files, %d failed" % (len(names), bad))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
