"""What the cases of tests/bench/media share: clips, measured runs, ffmpeg's commands, SSIM."""
import json
import os
import re
import statistics
import subprocess
import threading
import time

# name: file below media/, how to make 1080p of it (None: it is), what it shows
CLIPS = {
    "road": ("video/road_1080p25_h264_aac_24s.mp4", None, "a car's camera on a road"),
    "bunny": ("video/bbb_1080p25_h264_aac51_30s.mp4", None, "animation"),
    "battle": ("video/tos_800x332_vp8_vorbis_70s.webm", "scale=1920:1080:flags=lanczos", "live action with effects, scaled up"),
    "screen": ("video/screen_1024x768_vp8_37s.webm", "scale=1440:1080:flags=lanczos,pad=1920:1080:240:0", "a desktop, scaled up"),
    "diver": ("video/underwater_640x480_mjpeg_mp2.mov", "scale=1440:1080:flags=lanczos,pad=1920:1080:240:0,noise=alls=2:allf=t",
              "noise and turbulence, scaled up"),
    "crowd": ("video/crowd_720x400_h264_5s.mp4", "scale=1920:1080:flags=lanczos", "a dense crowd, scaled up; no sound"),
}


class Missing(Exception):
    """What a case needs is not there."""


class Env:
    """What a run has: folders, programs, how long it may take."""

    def __init__(self, root, build, media, folder, quick):
        self.root, self.build, self.media, self.folder, self.quick = root, build, media, folder, quick

    def program(self, name):
        path = os.path.join(self.build, "bin", name)
        if not os.path.exists(path):
            raise Missing(f"{name} was not built")
        return path

    def path(self, name):
        return os.path.join(self.folder, name)

    def clip(self, name, seconds):
        """The clip's first `seconds` as a 1080p H.264 file with AAC of high quality, as people upload them."""
        file, make, _ = CLIPS[name]
        source, path = os.path.join(self.media, file), self.path(f"{name}-{seconds}.mp4")
        if not os.path.exists(source):
            raise Missing(f"{source} is not there (CAUCE_TEST_DATA)")
        if not os.path.exists(path):
            run(["ffmpeg", "-v", "error", "-i", source, "-t", str(seconds), "-vf", make or "null", "-c:v", "libx264", "-preset",
                 "veryfast", "-crf", "14", "-g", "50", "-pix_fmt", "yuv420p", "-c:a", "aac", "-ac", "2", "-b:a", "192k",
                 "-map", "0:v:0", "-map", "0:a:0?", "-y", path])
        return path


def run(command):
    """Output of a command that must succeed."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"{command[0]}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    return done.stdout + done.stderr


def measured(command):
    """(CPU-seconds of the command and all that it waited for, seconds, output)."""
    begin = time.monotonic()
    p = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    errors = []
    drain = threading.Thread(target=lambda: errors.append(p.stderr.read()))
    drain.start()
    out = p.stdout.read()
    drain.join()
    _, status, usage = os.wait4(p.pid, 0)
    p.returncode = os.waitstatus_to_exitcode(status)
    p.stdout.close()
    p.stderr.close()
    if p.returncode:
        raise RuntimeError(f"{os.path.basename(command[0])}: {(errors[0].strip().splitlines() or ['failed'])[-1]}")
    return usage.ru_utime + usage.ru_stime, time.monotonic() - begin, out


def bench_media(env, source, **options):
    """One run of bench_media (ladder.c): what it says."""
    command = [env.program("bench_media"), "codec=" + env.program("cauce-codec"), "source=" + source]
    command += [f"{k}={v}" for k, v in options.items() if v is not None]
    return json.loads(measured(command)[2])


def has_audio(source):
    return "audio" in run(["ffprobe", "-v", "error", "-show_entries", "stream=codec_type", "-of", "csv=p=0", source])


def x264_params(recipe):
    """The x264 parameters of a recipe, for -x264-params."""
    found = re.search(r" (keyint=\S+)", recipe)
    return found.group(1) if found else ""


def preset_of(recipe):
    return re.search(r"preset=(\S+)", recipe).group(1)


def ffmpeg_ladder(source, rungs, out, cascade, own_params, starts=()):
    """One process: one decode, scaling split or cascaded, an x264 per rung, AAC. own_params: with
    the parameters that Cauce's encoders have, and a keyframe where its segments begin."""
    n = len(rungs)
    graph = [f"[0:v]split={n}" + "".join(f"[s{i}]" for i in range(n))]
    if cascade:
        graph = []
        for i, r in enumerate(rungs):
            source_pad = "[0:v]" if i == 0 else f"[c{i}]"
            tail = f"split[o{i}][c{i + 1}]" if i + 1 < n else f"null[o{i}]"
            graph.append(f"{source_pad}scale={r['width']}:{r['height']}:flags=bicubic,{tail}")
    else:
        graph += [f"[s{i}]scale={r['width']}:{r['height']}:flags=bicubic[o{i}]" for i, r in enumerate(rungs)]
    command = ["ffmpeg", "-v", "error", "-nostdin", "-y", "-i", source, "-filter_complex", ";".join(graph)]
    for i, r in enumerate(rungs):
        command += ["-map", f"[o{i}]", "-c:v", "libx264", "-preset", preset_of(r["recipe"]), "-crf", str(r["crf"]),
                    "-maxrate", str(r["maxrate"]), "-bufsize", str(r["maxrate"])]
        if own_params:
            command += ["-x264-params", x264_params(r["recipe"])]
            if starts:
                command += ["-force_key_frames", ",".join(f"{t:.6f}" for t in starts)]
        command += [os.path.join(out, r["id"] + ".mp4")]
    if has_audio(source):
        command += ["-map", "0:a:0", "-c:a", "aac", "-b:a", "128k", "-ac", "2", os.path.join(out, "a128.mp4")]
    return command


def ssim(source, files, upscale=False):
    """SSIM (all planes) of each (file, width, height) against the source scaled alike; upscale: each file is scaled to that
    size, too, as a player would."""
    values = []
    for path, width, height in files:
        scale = f"scale={width}:{height}:flags=bicubic+accurate_rnd,settb=1/1000,setpts=N*40"
        shown = scale if upscale else "settb=1/1000,setpts=N*40"
        text = run(["ffmpeg", "-v", "info", "-nostats", "-nostdin", "-i", path, "-i", source, "-filter_complex",
                    f"[0:v]{shown}[t];[1:v]{scale}[r];[t][r]ssim=shortest=1", "-f", "null", "-"])
        values.append(float(re.search(r"All:([0-9.]+)", text).group(1)))
    return values


def median(values):
    return statistics.median(values) if values else None
