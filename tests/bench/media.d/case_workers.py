"""Benchmark 2: two workers on two cores beside one ffmpeg with its own threads; what everything around the codec costs."""
import os

from common import Missing, bench_media, ffmpeg_ladder, measured, median
import case_start

NAME = "workers"
WHAT = "seconds for a ladder, two workers beside one ffmpeg; CPU of scheduling, transport and storage"


def wall_rows(env, seconds, rounds):
    source, out = env.clip("road", seconds), env.path("workers-out")
    os.makedirs(out, exist_ok=True)
    said = bench_media(env, source, cut="none")
    rungs = [r for r in said["renditions"] if r["width"]]
    samples = {"two workers": [], "ffmpeg-split": [], "ffmpeg-cascade": []}
    for turn in range(rounds):
        for system in samples if turn % 2 == 0 else reversed(list(samples)):
            if system == "two workers":
                one = bench_media(env, source, parallel=2)
                samples[system].append({"wall_s": one["wall_s"], "cpu_s": one["cpu_s"]})
            else:
                cpu, wall, _ = measured(ffmpeg_ladder(source, rungs, out, "cascade" in system, False))
                samples[system].append({"wall_s": wall, "cpu_s": cpu})
    rows = []
    for system, of in samples.items():
        pairs = [m["wall_s"] / s["wall_s"] for m, s in zip(samples["two workers"], of)]
        rows.append({"case": NAME, "system": system, "rounds": rounds, "ratio": None if system == "two workers" else median(pairs),
                     "metrics": {"wall_s": median([s["wall_s"] for s in of]), "cpu_s": median([s["cpu_s"] for s in of])}})
    return rows


def cpu_of_platform(env, home):
    """(CPU-seconds of the codec processes, of the platform's others) so far."""
    tick, codec, others = os.sysconf("SC_CLK_TCK"), 0.0, 0.0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            exe, cwd = os.readlink(f"/proc/{pid}/exe"), os.readlink(f"/proc/{pid}/cwd")
            with open(f"/proc/{pid}/stat") as f:
                fields = f.read().rsplit(")", 1)[1].split()
        except OSError:
            continue
        own, waited = (int(fields[11]) + int(fields[12])) / tick, (int(fields[13]) + int(fields[14])) / tick
        name = os.path.basename(exe)
        if exe == env.program("cauce-codec"):
            codec += own + waited
        elif exe == env.program("cauced"):
            others += own
        elif name == "postgres" and cwd.startswith(home):
            others += own
    return codec, others


def overhead_row(env, seconds):
    """A film's way through a whole platform: upload, probe, every task, publication."""
    source = env.clip("road", seconds)
    with case_start.Platform(env) as platform:
        home = os.path.realpath(env.path("home"))
        before = cpu_of_platform(env, home)
        item = platform.film(source)
        platform.watch(item, lambda job: job["state"] == "done")
        after = cpu_of_platform(env, home)
    codec, others = after[0] - before[0], after[1] - before[1]
    return {"case": NAME, "system": "platform", "ratio": None, "metrics": {
        "codec_cpu_s": codec, "other_cpu_s": others, "other_share": others / (codec + others)}}


def run(env):
    rows = wall_rows(env, 6 if env.quick else 16, 1 if env.quick else 5)
    for row in rows:
        m = row["metrics"]
        print(f"  {row['system']:<20}{m['wall_s']:>8.2f} s{m['cpu_s']:>8.2f} CPU-s"
              + (f"{row['ratio']:>8.3f}x of its time" if row["ratio"] else ""), flush=True)
    best = min(rows[1:], key=lambda r: r["metrics"]["wall_s"])
    targets = [(f"two workers: seconds to {best['system']}", best["ratio"], "max", 1.0)]
    try:
        row = overhead_row(env, 8 if env.quick else 24)
        m = row["metrics"]
        print(f"  platform            {m['codec_cpu_s']:.2f} CPU-s in codec processes, {m['other_cpu_s']:.2f} in all others")
        rows.append(row)
        targets.append(("platform: share of CPU outside the codec", m["other_share"], "max", 0.05))
    except Missing as e:
        print(f"  platform            not measured: {e}")
    return rows, targets
