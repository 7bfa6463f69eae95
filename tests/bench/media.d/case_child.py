"""What a confined process costs by itself: start, confinement, a look at a few words, verdict, end."""
import json

from common import median, run as command

NAME = "child"
WHAT = "CPU that start-up and confinement of a codec process cost a task"


def run(env):
    rounds, runs = (100, 3) if env.quick else (500, 7)
    said = [json.loads(command([env.program("bench_child"), env.program("cauce-codec"), str(rounds)])) for _ in range(runs)]
    metrics = {key: median([s[key] for s in said]) for key in said[0]}
    print(f"  forked by its host  {metrics['task_ms']:>8.2f} ms of CPU a task, {metrics['child_ms']:.2f} of them the child's, {metrics['wall_ms']:.2f} ms in all")
    print(f"  the first           {metrics['first_ms']:>8.2f} ms of CPU: the host loads its libraries")
    return [{"case": NAME, "system": "cauce", "metrics": metrics}], [("child: CPU of start-up and confinement, ms", metrics["task_ms"], "max", 10)]
