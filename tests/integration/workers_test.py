"""Workers and jobs as people steer them; and workers that are killed, drained and come back."""

import json
import os
import random
import signal
import subprocess
import time

from platform_fixture import BIN, PlatformTest, local, main, make_film

N_KILLS = 10
MAX_KILLS_OF_A_TASK = 3  # a task is given up after its fifth attempt


def children(pid):
    """Process ids of the children of a process."""
    found = []
    for p in os.listdir("/proc"):
        try:
            with open(f"/proc/{p}/stat") as f:
                if p.isdigit() and int(f.read().rsplit(")", 1)[1].split()[1]) == pid:
                    found.append(int(p))
        except OSError:
            pass
    return found


class JobTest(PlatformTest):
    @classmethod
    def digests(cls, item):
        return {(o["rendition"], o.get("segment", 0)): o["digest"]
                for o in cls.ctl("seller", "job", "show", item)["outputs"]}

    def job(self, item):
        return self.ctl("seller", "job", "show", item)

    def until_job(self, item, match, what, seconds=120):
        """The job as soon as match(job) is true."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            j = self.job(item)
            if match(j):
                return j
        self.fail(f"{what}: not seen within {seconds} s; the job is {j['state']}, {j.get('tasksDone', 0)} tasks done")


class Workers(JobTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.register("seller")
        cls.login_admin()
        cls.film = make_film(cls.path("film.mp4"), seconds=40, size="640x360")
        cls.film_item = cls.upload("seller", cls.film, "--title", "Film", "--wait")["item_id"]
        cls.want = cls.digests(cls.film_item)

    def tearDown(self):
        for w in ("worker-1", "worker-2"):
            self.ctl("admin", "worker", "uncordon", w)

    def encoders(self):
        """The codec's task processes of both workers."""
        return [p for w in ("worker-1", "worker-2") for host in children(self.plat.table.pid(w)) for p in children(host)]

    @staticmethod
    def leased(job, kind="chunk"):
        return [t for t in job["taskList"] if t["state"] == "leased" and t["kind"] == kind]

    def test_cancelled_job_ends_its_encoders_within_a_second(self):
        item = self.upload("seller", self.film, "--title", "Cancelled")["item_id"]
        self.until_job(item, lambda j: self.leased(j) and self.encoders(), "an encoder at work")
        j = self.ctl("seller", "job", "cancel", item, "--reason", "wrong film")
        began = time.monotonic()  # a slow start of mediactl is no matter
        while self.encoders() and time.monotonic() - began < 60:
            pass
        self.assertLess(time.monotonic() - began, 3 * 1.0)
        self.assertEqual(j["state"], "cancelled")
        self.assertIn("wrong film", j["reason"])
        self.assertEqual(self.leased(self.job(item)), [])
        p = self.ctl_raw("seller", "job", "watch", item)
        self.assertEqual(p.returncode, 1, p.stdout)
        self.assertIn("cancelled by seller: wrong film", p.stderr)
        why = self.ctl("seller", "job", "why", item)
        self.assertIn("wrong film", " ".join(why["lines"]))
        self.assertTrue(any("retry" in a for a in why["advice"]), why)
        self.ctl("seller", "job", "retry", item)
        self.until_job(item, lambda j: j["state"] == "done", "the end of the job")
        self.assertEqual(self.digests(item), self.want)

    def test_paused_job_waits_and_says_so(self):
        for w in ("worker-1", "worker-2"):
            self.ctl("admin", "worker", "cordon", w)
        item = self.upload("seller", self.film, "--title", "Paused")["item_id"]
        why = self.ctl("admin", "job", "why", item)
        self.assertIn("worker worker-1 is cordoned: it gets no work", why["lines"])
        self.assertEqual(self.ctl_raw("seller", "job", "priority", item, "high").returncode, 4)
        self.assertEqual(self.ctl("seller", "job", "priority", item, "low")["priority"], -800)
        self.assertTrue(self.ctl("seller", "job", "pause", item)["paused"])
        for w in ("worker-1", "worker-2"):
            self.ctl("admin", "worker", "uncordon", w)
        # Whatever is done before this other film is, the paused one is not.
        self.upload("seller", make_film(self.path("other.mp4"), seconds=2), "--title", "Other", "--wait")
        self.assertEqual(self.job(item).get("tasksDone", 0), 0)
        classes = {c["class"]: c for c in self.ctl("admin", "job", "queue").get("classes", [])}
        self.assertEqual(int(classes["probe"]["paused"]), 1)
        watch = subprocess.Popen([os.path.join(BIN, "mediactl"), "job", "watch", item, "--json"], text=True,
                                 env=self.ctl_env("seller"), stdout=subprocess.PIPE)
        first = json.loads(watch.stdout.readline())
        self.assertTrue(first["job"]["paused"])
        self.ctl("seller", "job", "resume", item)
        seen = [json.loads(line) for line in watch.stdout]
        self.assertEqual(watch.wait(), 0)
        watch.stdout.close()
        self.assertTrue(seen[-1]["ended"])
        self.assertEqual(seen[-1]["job"]["state"], "done")
        self.assertGreater(seen[-1]["cpuPerMediaSecond"], 0)
        self.assertAlmostEqual(seen[-1]["mediaSecondsDone"], 40, delta=1)
        self.assertEqual(self.digests(item), self.want)

    def test_drained_worker_gives_its_work_to_another(self):
        item = self.upload("seller", self.film, "--title", "Drained")["item_id"]
        j = self.until_job(item, self.leased, "a worker at work")
        worker = self.leased(j)[0]["worker"]
        w = self.ctl("admin", "worker", "drain", worker, "--now", "--wait")
        self.assertEqual((w.get("busy", 0), w["state"]), (0, "cordoned"))
        self.until_job(item, lambda j: j["state"] == "done", "the end of the job")
        self.assertEqual(self.digests(item), self.want)
        self.assertEqual(self.ctl_raw("admin", "worker", "forget", worker).returncode, 1)
        codecs = [w["codecs"] for w in self.ctl("admin", "worker", "ls")["workers"] if w["workerId"] == worker]
        self.assertIn("h264", codecs[0].split(","))

    def kill(self, node):
        os.kill(self.plat.table.pid(node), signal.SIGKILL)
        self.plat.table.stop([node], 5)
        self.plat.start_node(node)

    def kill_some(self, item, n, rand):
        """Kill random busy workers of this job; how many were until it ended, at most n."""
        killed, hits, done = 0, {}, -1
        while killed < n:
            j = self.until_job(item, lambda j: j["state"] in ("done", "failed") or self.leased(j), "a worker at work")
            if j["state"] in ("done", "failed"):
                break
            # Each time some task was finished meanwhile, so that the job goes on.
            if j.get("tasksDone", 0) == done:
                continue
            victims = [t for t in self.leased(j) if hits.get(t["taskId"], 0) < MAX_KILLS_OF_A_TASK]
            if not victims:
                continue
            t = rand.choice(victims)
            hits[t["taskId"]] = hits.get(t["taskId"], 0) + 1
            done = j.get("tasksDone", 0)
            self.kill(t["worker"])
            killed += 1
        return killed

    def test_ten_killed_workers_change_nothing_in_the_output(self):
        rand = random.Random(1)
        left = N_KILLS
        for n in range(N_KILLS):
            item = self.upload("seller", self.film, "--title", f"Killed {n}")["item_id"]
            left -= self.kill_some(item, left, rand)
            j = self.until_job(item, lambda j: j["state"] in ("done", "failed"), "the end of the job")
            self.assertEqual(j["state"], "done", j.get("reason"))
            self.assertEqual(self.digests(item), self.want)
            if left == 0:
                return
        self.fail(f"{left} of {N_KILLS} workers could not be killed at work")


class LastResort(JobTest):
    env = {"CAUCE_LOCAL_WORKER": "on", "CAUCE_ORCHESTRATOR_LOCAL_WORKER_AFTER": "20s",
           "CAUCE_ORCHESTRATOR_VERIFY_FIRST": "1000"}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.register("seller")
        cls.login_admin()

    @classmethod
    def tearDownClass(cls):
        for name in cls.env:
            del os.environ[name]

    def local_worker(self):
        return children(self.plat.table.pid("orchestrator-1"))

    def test_host_works_itself_while_no_worker_is_up(self):
        self.assertEqual(self.local_worker(), [])
        self.plat.table.stop(["worker-1", "worker-2"], 15)
        item = self.upload("seller", make_film(self.path("alone.mp4"), seconds=2), "--title", "Alone", "--wait")["item_id"]
        self.assertEqual({o["worker"] for o in self.ctl("seller", "job", "show", item)["outputs"]}, {"transcode-local"})
        self.assertEqual(len(self.local_worker()), 1)
        for w in ("worker-1", "worker-2"):
            self.plat.start_node(w)
        deadline = time.monotonic() + 60
        while self.local_worker() and time.monotonic() < deadline:
            pass
        self.assertEqual(self.local_worker(), [])
        item = self.upload("seller", make_film(self.path("back.mp4"), seconds=3), "--title", "Back", "--wait")["item_id"]
        makers = {o["worker"] for o in self.ctl("seller", "job", "show", item)["outputs"]}
        self.assertLessEqual(makers, {"worker-1", "worker-2"})

    def start_with(self, node, *options):
        """Start a node again with more options."""
        nodes = local.NODES
        self.plat.table.stop([node], 15)
        local.NODES = [(n, role, kind, [*o, *(options if n == node else ())]) for n, role, kind, o in nodes]
        try:
            self.plat.start_node(node)
        finally:
            local.NODES = nodes

    def test_wrong_pictures_are_found_and_made_again(self):
        film = make_film(self.path("truth.mp4"), seconds=20, size="640x360")
        want = self.digests(self.upload("seller", film, "--title", "Truth", "--wait")["item_id"])
        self.start_with("worker-2", "--codec", os.path.join(BIN, "cauce-codec-lie"))
        self.ctl("admin", "worker", "cordon", "worker-1")
        item = self.upload("seller", film, "--title", "Lies")["item_id"]
        made = lambda j: [t for t in j["taskList"] if t["state"] == "done" and t["renditions"].startswith("v")]
        self.until_job(item, made, "pictures by worker-2")
        self.ctl("admin", "worker", "uncordon", "worker-1")
        self.until_job(item, lambda j: j["state"] == "done", "the end of the job")
        self.assertEqual(self.digests(item), want)
        liar = next(w for w in self.ctl("admin", "worker", "ls")["workers"] if w["workerId"] == "worker-2")
        self.assertEqual(liar["state"], "quarantined")
        self.assertIn("its pictures are not the film's", liar["reason"])
        self.start_with("worker-2")
        self.assertIn(self.ctl("admin", "worker", "uncordon", "worker-2")["state"], ("up", "gone"))


if __name__ == "__main__":
    main()
