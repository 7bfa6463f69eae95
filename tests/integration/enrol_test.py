"""A machine joins with an invitation and works, a worker is revoked, keys change under traffic."""

import datetime
import json
import os
import subprocess
import threading
import time

from platform_fixture import BIN, PlatformTest, main, make_film
import processes

CAUCED = os.path.join(BIN, "cauced")
PATIENCE_S = 60


class Enrol(PlatformTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.register("seller")
        cls.login_admin()
        cls.keys = os.path.join(cls.plat.home, "keys")

    @classmethod
    def start(cls, name, *words):
        """A process besides the launcher's; what its ready file says."""
        ready = cls.path(name + ".ready")
        watch = processes.Directory(cls.dir.name)
        with open(cls.path(name + ".log"), "wb") as log:
            p = subprocess.Popen([CAUCED, *words, "--ready-file", ready], stdin=subprocess.DEVNULL,
                                 stdout=log, stderr=log)
        cls.addClassCleanup(_end, p)
        missing, dead = watch.wait_for([os.path.basename(ready)], time.monotonic() + PATIENCE_S,
                                       lambda: [] if p.poll() is None else [name])
        watch.close()
        if missing or dead:
            with open(cls.path(name + ".log")) as f:
                raise AssertionError(f"{name} is not ready: {f.read()[-800:]}")
        with open(ready) as f:
            return p, json.load(f)

    @staticmethod
    def cauced(*words, stdin=None, code=0):
        p = subprocess.run([CAUCED, *words], input=stdin, capture_output=True, text=True, timeout=PATIENCE_S)
        if p.returncode != code:
            raise AssertionError(f"cauced {words[0]} ended with {p.returncode}, not {code}: {p.stderr}")
        return p

    def wait_until(self, ask, what):
        """Ask again and again; each question goes to a running process and takes its time."""
        deadline = time.monotonic() + PATIENCE_S
        while not ask():
            self.assertLess(time.monotonic(), deadline, what)

    def has_worked(self, worker):
        """It has a task of the job, or has made some of its output."""
        job = self.ctl("seller", "job", "show", self.item)
        return worker in {t.get("worker") for t in job.get("taskList", []) + job.get("outputs", [])}

    def log_has(self, node, event, text):
        with open(self.plat.log(node), errors="replace") as f:
            return any(event in line and text in line for line in f)

    def test_life_of_a_worker_that_joined(self):
        self.start("enrol", "enrol", "--keys", self.keys, "--listen", "tcp://127.0.0.1:0")
        invited = json.loads(self.cauced("invite", "--keys", self.keys, "--role", "worker", "--name", "worker-9",
                                         "--url", f"ipc://{self.path('w9.sock')}", "--json").stdout)
        machine = self.path("machine")
        joined = json.loads(self.cauced("join", "-", "--keys", machine, "--json", stdin=invited["invitation"]).stdout)
        self.assertEqual(joined["node"], "worker-9")
        self.assertEqual(os.stat(os.path.join(machine, "worker-9.key")).st_mode & 0o077, 0)

        again = self.cauced("join", "-", "--keys", self.path("thief"), stdin=invited["invitation"], code=1)
        self.assertIn("was used already", again.stderr)
        secret = invited["invitation"].rsplit("#", 1)[1]
        with open(self.path("enrol.log")) as f:
            self.assertNotIn(secret, f.read())

        # It alone takes tasks; then it is revoked with what it has, and the others finish the job.
        self.plat.table.stop(["worker-1", "worker-2"], 10)
        self.start("worker-9", "transcode", "--node", "worker-9", "--keys", machine, "--slots", "1", "--scratch",
                   self.path("scratch"))
        film = make_film(self.path("film.mp4"), seconds=8)
        tail = self.events("seller", start=-1)
        self.item = self.upload("seller", film, "--title", "Revoked", "--public")["item_id"]
        mine = lambda e: self.item in (e.get("subject"), e["data"].get("item_id"))
        self.wait_until(lambda: self.has_worked("worker-9"), "worker-9 takes no task")
        self.cauced("keys", "revoke", "--keys", self.keys, "worker-9")
        self.wait_until(lambda: self.log_has("orchestrator-1", "rpc_grant_ended", "worker-9"), "it is still connected")
        self.plat.start_node("worker-1")
        self.plat.start_node("worker-2")
        end = self.until(tail, lambda e: mine(e) and e["kind"] in ("job.done", "job.failed"))
        self.assertEqual(end["kind"], "job.done")
        show = json.loads(self.cauced("keys", "show", "--keys", self.keys, "--json").stdout)
        self.assertIn("worker-9", show["revoked"])
        self.assertNotIn("worker-9", [n["node"] for n in show["nodes"]])

    def test_keys_change_under_traffic(self):
        """No call fails while nodes get other keys. The gateway's is part of its address: it keeps both."""
        stop, failed, done = threading.Event(), [], [0]
        token = self.access_token("seller")

        def traffic(url):
            while not stop.is_set():
                r = self.request(url, token)
                done[0] += 1
                if r.status != 200:
                    failed.append((url, r.status, r.body))

        threads = [threading.Thread(target=traffic, args=(url,)) for url in
                   ("/api/v1/items?page.size=5", "/api/v1/me", "/api/v1/items?page.size=1")]
        nodes = ["session-1", "store-1", "orchestrator-1", "video-1", "video-2", "worker-1"]
        for t in threads:
            t.start()
        try:
            self.cauced("keys", "rotate", "--keys", self.keys, *nodes, "gateway-1")
            self.wait_all_reloaded()
            self.cauced("keys", "retire", "--keys", self.keys, *nodes)
            self.wait_all_reloaded()
            before = done[0]
            self.wait_until(lambda: done[0] > before + 30, "calls go on")
        finally:
            stop.set()
            for t in threads:
                t.join()
        self.assertEqual(failed, [])
        show = json.loads(self.cauced("keys", "show", "--keys", self.keys, "--json").stdout)
        self.assertEqual([n["node"] for n in show["nodes"] if "nextKey" in n], ["gateway-1"])
        self.assertEqual(self.ctl("seller", "whoami")["name"], "seller")  # at the address that it always had

    def wait_all_reloaded(self):
        """Until every running node has read what is in the folder now."""
        changed = max(os.stat(os.path.join(self.keys, f)).st_ctime for f in os.listdir(self.keys))
        for node in (n["name"] for n in self.plat.status() if n["up"] and n["role"] != "database"):
            self.wait_until(lambda n=node: self.reloaded_at(n) > changed, f"{node} has not read its keys")

    def reloaded_at(self, node):
        """When it said last that it did, Unix seconds; asked beside a request, which takes its time."""
        self.request("/livez")
        last = 0.0
        with open(self.plat.log(node), errors="replace") as f:
            for line in f:
                if '"keys_reloaded"' in line:
                    last = datetime.datetime.fromisoformat(json.loads(line)["time"].replace("Z", "+00:00")).timestamp()
        return last


def _end(p):
    p.terminate()
    p.wait()


if __name__ == "__main__":
    main()
