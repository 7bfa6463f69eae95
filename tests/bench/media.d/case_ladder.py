"""Benchmark 1: a 1080p source to 1080, 720, 480, 360 and 240 lines and AAC; CPU-seconds beside ffmpeg."""
import os

from common import CLIPS, bench_media, ffmpeg_ladder, measured, median, ssim

NAME = "ladder"
WHAT = "1080p to five rungs and AAC: CPU-seconds of all processes, beside one ffmpeg process"
SYSTEMS = {
    "cauce": "chunk tasks in confined processes, as a worker runs them",
    "ffmpeg-split": "one decode, each rung scaled from the source, the preset as it is",
    "ffmpeg-cascade": "the same, each rung scaled from the one above",
    "ffmpeg-split-own": "split, with the x264 parameters that Cauce uses",
    "ffmpeg-cascade-own": "cascade, with the x264 parameters that Cauce uses",
}


def run_ffmpeg(env, system, source, facts):
    out = env.path("ladder-" + system)
    os.makedirs(out, exist_ok=True)
    own = system.endswith("-own")
    cpu, wall, _ = measured(ffmpeg_ladder(source, facts["rungs"], out, "cascade" in system, own, facts["starts"]))
    return {"cpu_s": cpu, "wall_s": wall}, out


def rows_of_clip(env, clip, seconds, rounds):
    source = env.clip(clip, seconds)
    mine = env.path("ladder-cauce")
    os.makedirs(mine, exist_ok=True)
    said = bench_media(env, source, out=mine)  # warms up, too; its rungs are ffmpeg's
    rungs = [r for r in said["renditions"] if r["width"]]
    facts = {"rungs": rungs, "starts": said["starts"]}
    samples, outs = {s: [] for s in SYSTEMS}, {"cauce": mine}
    for turn in range(rounds):
        for system in SYSTEMS if turn % 2 == 0 else reversed(SYSTEMS):
            if system == "cauce":
                sample = bench_media(env, source)
            else:
                sample, outs[system] = run_ffmpeg(env, system, source, facts)
            samples[system].append(sample)
    rows = []
    for system in SYSTEMS:
        files = [(os.path.join(outs[system], r["id"] + ".mp4"), r["width"], r["height"]) for r in rungs]
        quality = ssim(source, files)
        metrics = {"cpu_s": median([s["cpu_s"] for s in samples[system]]),
                   "cpu_s_least": min(s["cpu_s"] for s in samples[system]),
                   "bytes": sum(os.path.getsize(f[0]) for f in files)}
        if system == "cauce":
            metrics["probe_cpu_s"] = median([s["probe_cpu_s"] for s in samples[system]])
        metrics["rungs"] = {r["id"]: {"bytes": os.path.getsize(f[0]), "ssim": q} for r, f, q in zip(rungs, files, quality)}
        # Paired: each run beside Cauce's of the same round.
        pairs = [c["cpu_s"] / s["cpu_s"] for c, s in zip(samples["cauce"], samples[system])]
        rows.append({"case": NAME, "clip": clip, "system": system, "rounds": rounds, "metrics": metrics,
                     "ratio": None if system == "cauce" else median(pairs)})
    return rows


def cut_rows(env, clip, seconds, rounds):
    """What chunks cost: the orchestrator's tasks, one task, one segment."""
    source, samples = env.clip(clip, seconds), {}
    for turn in range(rounds):
        for cut in ("tasks", "all", "one") if turn % 2 == 0 else ("one", "all", "tasks"):
            samples.setdefault(cut, []).append(bench_media(env, source, cut=cut))
    return [{"case": NAME + " chunks", "clip": clip, "system": cut, "rounds": rounds, "ratio": None, "metrics": {
        "cpu_s": median([s["cpu_s"] for s in samples[cut]]),
        "bytes": sum(r["bytes"] for r in samples[cut][0]["renditions"] if r["width"])}} for cut in samples]


def print_clip(rows):
    ids = list(rows[0]["metrics"]["rungs"])
    print(f"\n  {rows[0]['clip']}: {CLIPS[rows[0]['clip']][2]}; {rows[0]['rounds']} rounds, medians; ratio: Cauce's CPU to that row's")
    print(f"  {'':<20}{'CPU-s':>8}{'ratio':>8}{'MB':>8}" + "".join(f"{i + ' kB':>11}{'SSIM':>8}" for i in ids))
    for row in rows:
        m = row["metrics"]
        line = f"  {row['system']:<20}{m['cpu_s']:>8.2f}{row['ratio'] or 0:>8.3f}{m['bytes'] / 1e6:>8.3f}"
        print(line + "".join(f"{m['rungs'][i]['bytes'] / 1e3:>11.1f}{m['rungs'][i]['ssim']:>8.4f}" for i in ids), flush=True)


def judge_clip(rows):
    clip, mine = rows[0]["clip"], rows[0]["metrics"]
    cheapest = min(rows[1:], key=lambda r: r["metrics"]["cpu_s"])
    other = cheapest["metrics"]
    worst = min(mine["rungs"][i]["ssim"] - other["rungs"][i]["ssim"] for i in mine["rungs"])
    return [
        (f"{clip}: CPU to the cheapest ffmpeg row ({cheapest['system']})", cheapest["ratio"], "max", 0.90),
        (f"{clip}: bytes to that row", mine["bytes"] / other["bytes"], "max", 1.0),
        (f"{clip}: least SSIM difference of a rung to that row", worst, "min", -0.001),
    ]


def run(env):
    clips = ["road", "bunny"] if env.quick else ["road", "bunny", "battle", "screen", "diver"]
    seconds, rounds = (2, 1) if env.quick else (8, 5)
    rows, targets = [], []
    for name, what in SYSTEMS.items():
        print(f"  {name:<20}{what}")
    for clip in clips:
        fresh = rows_of_clip(env, clip, seconds, rounds)
        print_clip(fresh)
        rows += fresh
        targets += judge_clip(fresh)
    if not env.quick:
        cuts = cut_rows(env, "road", 16, 5)
        print("\n  what chunks cost (road, 16 s)")
        for row in cuts:
            print(f"  {row['system']:<20}{row['metrics']['cpu_s']:>8.2f}{row['metrics']['bytes'] / 1e6:>16.3f}")
        by = {r["system"]: r["metrics"] for r in cuts}
        targets += [("chunks: CPU to one task", by["tasks"]["cpu_s"] / by["all"]["cpu_s"], "max", 1.02),
                    ("chunks: CPU to one segment in one task", by["tasks"]["cpu_s"] / by["one"]["cpu_s"], "max", 1.02),
                    ("chunks: bytes to one segment", by["tasks"]["bytes"] / by["one"]["bytes"], "max", 1.005)]
        rows += cuts
    return rows, targets
