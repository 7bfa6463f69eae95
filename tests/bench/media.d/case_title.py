"""Benchmark 4: a ladder fitted to the title beside Apple's fixed one: bits at equal SSIM."""
import math
import os

from common import CLIPS, bench_media, run as command, ssim

NAME = "title"
WHAT = "the title's own ladder beside a fixed one (Apple's authoring specification): bits at equal SSIM, shown at 1080p"
# width, height, bits per second on average; peaks of twice that are allowed
APPLE = [(416, 234, 145_000), (640, 360, 365_000), (768, 432, 730_000), (768, 432, 1_100_000), (960, 540, 2_000_000),
         (1280, 720, 3_000_000), (1280, 720, 4_500_000), (1920, 1080, 6_000_000), (1920, 1080, 7_800_000)]


def fixed_ladder(env, source, rungs):
    """The same encoder and preset at those rates: [(bits per second, file, width, height)]."""
    made = []
    for width, height, rate in rungs:
        path = env.path(f"fixed-{height}-{rate}.mp4")
        command(["ffmpeg", "-v", "error", "-nostdin", "-y", "-i", source, "-an", "-vf", f"scale={width}:{height}:flags=bicubic",
                 "-c:v", "libx264", "-preset", "veryfast", "-b:v", str(rate), "-maxrate", str(2 * rate), "-bufsize", str(2 * rate),
                 "-x264-params", "keyint=100:scenecut=0", path])
        made.append((path, width, height))
    return made


def points(source, files, seconds):
    """[(bits per second, SSIM in decibels)] of what is seen on a 1080p screen, by rate."""
    found = []
    for path, width, height in files:
        value = ssim(source, [(path, 1920, 1080)], upscale=True)[0]
        found.append((os.path.getsize(path) * 8 / seconds, -10 * math.log10(1 - min(value, 0.999999))))
    return sorted(found)


def rate_at(curve, quality):
    """Bits per second at that quality, by interpolation of the logarithm; None outside."""
    for (r0, q0), (r1, q1) in zip(curve, curve[1:]):
        if min(q0, q1) <= quality <= max(q0, q1) and q0 != q1:
            return math.exp(math.log(r0) + (math.log(r1) - math.log(r0)) * (quality - q0) / (q1 - q0))
    return None


def saving(mine, fixed):
    """Mean over our rungs of what is saved at that rung's quality; rungs beyond the fixed ladder are left out."""
    ratios = [rate / other for rate, quality in mine if (other := rate_at(fixed, quality))]
    return 1 - math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else None


def run(env):
    clips = ["bunny", "crowd"] if env.quick else ["bunny", "screen", "crowd", "diver"]
    seconds, rows, targets = 2 if env.quick else 5, [], []
    rungs = [APPLE[i] for i in (0, 1, 2, 4, 5, 7)] if env.quick else APPLE
    for clip in clips:
        source, out = env.clip(clip, seconds), env.path("title-" + clip)
        os.makedirs(out, exist_ok=True)
        said = bench_media(env, source, out=out)
        ladder = [r for r in said["renditions"] if r["width"]]
        mine = points(source, [(os.path.join(out, r["id"] + ".mp4"), r["width"], r["height"]) for r in ladder], seconds)
        fixed = points(source, fixed_ladder(env, source, rungs), seconds)
        saved = saving(mine, fixed)
        top = mine[-1][0] / fixed[-1][0]
        print(f"\n  {clip}: {CLIPS[clip][2]}")
        for name, curve in (("own", mine), ("fixed", fixed)):
            print(f"  {name:<8}" + "  ".join(f"{rate / 1e3:.0f} kbit/s {quality:.2f} dB" for rate, quality in curve))
        print(f"  the top rung takes {top:.2f} of the fixed one's bits; at equal SSIM the ladder saves "
              + (f"{saved * 100:.1f} %" if saved is not None else "nothing that can be compared"), flush=True)
        rows.append({"case": NAME, "clip": clip, "system": "cauce", "ratio": None, "metrics": {
            "rungs": {r["id"]: {"crf": r["crf"], "maxrate": r["maxrate"]} for r in ladder}, "own": mine, "fixed": fixed,
            "saving": saved, "top_to_fixed": top, "probe_cpu_s": said["probe_cpu_s"]}})
        targets.append((f"{clip}: CPU-seconds of the probe, analysis included", said["probe_cpu_s"], "max", 1.0))
    return rows, targets
