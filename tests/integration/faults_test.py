"""Killed workers and origins, a database that is away, origins of one kind down."""

import os
import random
import signal
import subprocess
import time

from platform_fixture import BIN, PlatformTest, main, make_film, make_song


class Faults(PlatformTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.register("seller")
        cls.login_admin()
        cls.song = make_song(cls.path("song.flac"))
        cls.song_item = cls.upload("seller", cls.song, "--title", "Song", "--public", "--wait")["item_id"]
        cls.film = make_film(cls.path("film.mp4"), seconds=20, size="1280x720")
        cls.film_item = cls.upload("seller", cls.film, "--title", "Film", "--public", "--wait")["item_id"]

    def kill(self, node):
        os.kill(self.plat.table.pid(node), signal.SIGKILL)
        self.plat.table.stop([node], 5)

    def digests(self, item):
        return {(o["rendition"], o.get("segment", 0)): o["digest"]
                for o in self.ctl("seller", "job", "show", item)["outputs"]}

    def test_killed_worker_changes_nothing_in_the_output(self):
        want = self.digests(self.film_item)
        tail = self.events("seller", start=-1)
        item = self.upload("seller", self.film, "--title", "Killed")["item_id"]
        mine = lambda e: item in (e.get("subject"), e["data"].get("item_id"))
        self.until(tail, lambda e: mine(e) and e["kind"] == "item.planned")
        worker = self.busy_worker(item)
        self.kill(worker)
        end = self.until(tail, lambda e: mine(e) and e["kind"] in ("job.done", "job.failed"))
        self.plat.start_node(worker)
        self.assertEqual(end["kind"], "job.done")
        self.assertEqual(self.digests(item), want)

    def busy_worker(self, item):
        """Who makes segments of it just now; asked again and again, since a fast machine tells no progress of them."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for t in self.ctl("seller", "job", "show", item)["taskList"]:
                if t["state"] == "leased" and t["kind"] == "chunk":
                    return t["worker"]
        self.fail("no worker was seen making segments")

    def test_killed_origin_in_the_middle_of_an_upload(self):
        path = self.path("big.mp4")
        make_film(path, seconds=4, size="640x360")
        with open(path, "ab") as f:  # a `free` box makes it large without making it long to encode
            size = 96 << 20
            f.write((size + 8).to_bytes(4, "big") + b"free" + random.Random(7).randbytes(size))
        p = subprocess.Popen([os.path.join(BIN, "mediactl"), "upload", path, "--title", "Big", "--wait", "--json"],
                             env=self.ctl_env("seller"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        victim = self.receiving_origin(p)
        self.kill(victim)
        self.plat.start_node(victim)
        out, err = p.communicate(timeout=180)
        self.assertEqual(p.returncode, 0, err[-800:])

    def receiving_origin(self, p):
        """The video origin whose disk grows; found by watching its folder."""
        roots = {n: os.path.join(self.plat.home, "objects", n) for n in ("video-1", "video-2")}
        before = {n: _bytes(r) for n, r in roots.items()}
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and p.poll() is None:
            for n, r in roots.items():
                if _bytes(r) > before[n] + (4 << 20):
                    return n
        self.fail("the upload ended before any origin was seen receiving it: "
                  + (p.stderr.read()[-500:] if p.poll() is not None else "timeout"))

    def test_music_plays_while_video_origins_are_down(self):
        for n in ("video-1", "video-2"):
            self.kill(n)
        self.ctl("seller", "play", self.song_item, "--out", self.path("music"))
        began = time.monotonic()
        p = self.ctl_raw("seller", "play", self.film_item, "--out", self.path("none"))
        self.assertEqual(p.returncode, 6, p.stderr)
        self.assertLess(time.monotonic() - began, 3 * 2)
        for n in ("video-1", "video-2"):
            self.plat.start_node(n)
        deadline = time.monotonic() + 30
        while (p := self.ctl_raw("seller", "play", self.film_item, "--out", self.path("again"))).returncode == 6 \
                and time.monotonic() < deadline:
            pass
        self.assertEqual(p.returncode, 0, p.stderr)

    def test_playing_goes_on_while_the_database_is_away(self):
        token = self.access_token("seller")
        play = self.request(f"/api/v1/items/{self.film_item}/play", token, {"profile": {"neverDirect": True}}).json()
        base = play["masterUrl"].rsplit("/", 1)[0]
        self.assertEqual(self.request(f"{base}/v720.m3u8").status, 200)
        self.assertEqual(self.request(f"{base}/v720/0.m4s").status, 200)
        self.plat.pg_stop()
        try:
            for n in range(1, 4):
                self.assertEqual(self.request(f"{base}/v720/{n}.m4s").status, 200, n)
            other = make_film(self.path("down.mp4"), seconds=2, extra=("-metadata", "comment=down"))
            p = self.ctl_raw("seller", "upload", other, "--title", "No", "--timeout", "10s", timeout=60)
            self.assertIn(p.returncode, (6, 7), p.stderr)
            self.assertTrue(p.stderr.strip())
        finally:
            self.plat.pg_start()
        deadline = time.monotonic() + 30
        while (p := self.ctl_raw("seller", "upload", other, "--title", "Yes", "--wait")).returncode in (6, 7) \
                and time.monotonic() < deadline:
            pass
        self.assertEqual(p.returncode, 0, p.stderr)

    def test_roles_stop_within_five_seconds(self):
        for name in ("gateway-1", "session-1"):
            began = time.monotonic()
            killed = self.plat.table.stop([name], 15)
            self.assertEqual(killed, [])
            self.assertLess(time.monotonic() - began, 3 * 5)
            self.plat.start_node(name)
        with open(os.path.join(self.plat.ready, "gateway-1")) as f:
            self.assertTrue(f.read())
        r = self.plat.where()
        type(self).server, type(self).http = r["server"], r["http"]


def _bytes(root):
    total = 0
    for d, _, files in os.walk(root):
        for f in files:
            try:
                total += os.stat(os.path.join(d, f)).st_blocks * 512
            except OSError:
                pass
    return total


if __name__ == "__main__":
    main()
