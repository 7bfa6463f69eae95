"""A rendition that is made on request only: opened at a random place, while the worker that makes it is killed."""

import os
import random
import re
import signal
import threading
import time

from platform_fixture import PlatformTest, ffprobe, main, make_film

WORKERS = ("worker-1", "worker-2")
WAIT_S = 180  # a lease ends after 15 s


class Demand(PlatformTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.register("seller")
        cls.film = make_film(cls.path("film.mp4"), seconds=40, size="320x180", extra=("-g", "25"))
        cls.item = cls.upload("seller", cls.film, "--wait")["item_id"]
        cls.token = cls.access_token("seller")

    def signal(self, node, what):
        os.kill(self.plat.table.pid(node), what)

    def wake(self, node):
        if self.plat.table.is_up(node):
            self.signal(node, signal.SIGCONT)

    def open(self):
        play = self.request(f"/api/v1/items/{self.item}/play", self.token, {"profile": {"neverDirect": True}}).json()
        return play, play["masterUrl"].rsplit("/", 1)[0]

    def job(self):
        return self.request("/api/v1/jobs/" + self.item, self.token).json()

    def demand_tasks(self):
        return [t for t in self.job()["taskList"] if t.get("renditions") == "vcopy"]

    def until(self, what, condition):
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            found = condition()
            if found:
                return found
        self.fail(f"waited in vain for {what}")

    def fetch(self, url, into):
        """As a player does: again as long as it is not made yet."""
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            r = self.request(url)
            into.append(r)
            if r.status != 503:
                return

    def segment_frames(self, base, number, body):
        path = self.path(f"part-{number}.mp4")
        with open(path, "wb") as f:
            f.write(self.request(f"{base}/vcopy/init.mp4").body + body)
        return int(ffprobe(path, "-count_packets", "-show_streams")["streams"][0]["nb_read_packets"])

    def test_rendition_on_request_survives_its_worker(self):
        play, base = self.open()
        lazy = [r for r in play["renditions"] if r["id"] == "vcopy"]
        self.assertTrue(lazy, "this film can be copied")
        self.assertEqual(lazy[0].get("segmentsReady", 0), 0)
        before = self.job()
        self.assertEqual(before["state"], "done")
        playlist = self.request(f"{base}/vcopy.m3u8").body.decode()
        lengths = [float(x) for x in re.findall(r"#EXTINF:([0-9.]+)", playlist)]
        number = random.randrange(len(lengths))
        print(f"segment {number} of {len(lengths)}")

        # A worker that is frozen takes the task and never begins it.
        for w in WORKERS:
            self.signal(w, signal.SIGSTOP)
            self.addCleanup(self.wake, w)
        replies = []
        player = threading.Thread(target=self.fetch, args=(f"{base}/vcopy/{number}.m4s", replies))
        player.start()
        victim = self.until("a lease", lambda: [t for t in self.demand_tasks() if t["state"] == "leased"])[0]["worker"]
        self.signal(victim, signal.SIGKILL)
        for w in WORKERS:
            if w != victim:
                self.signal(w, signal.SIGCONT)
        player.join(WAIT_S + 60)
        self.assertEqual(replies[-1].status, 200, replies[-1].body[:200])
        self.assertEqual(self.segment_frames(base, number, replies[-1].body), round(lengths[number] * 25))
        self.plat.start_node(victim)

        # What follows comes by itself; the same place again is there; the item is as ready as before.
        for n in range(number, min(number + 3, len(lengths))):
            again = []
            self.fetch(f"{base}/vcopy/{n}.m4s", again)
            self.assertEqual(again[-1].status, 200)
            self.assertEqual(self.segment_frames(base, n, again[-1].body), round(lengths[n] * 25))
        after = self.job()
        self.assertEqual(after["state"], "done")
        self.assertEqual(after["tasks"], before["tasks"])


if __name__ == "__main__":
    main()
