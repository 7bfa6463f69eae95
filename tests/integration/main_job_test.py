"""Upload, transcode, play, buy, keep: what a user does, through mediactl and HTTP."""

import base64
import filecmp
import json
import os
import re
import subprocess
import urllib.parse

from platform_fixture import BIN, PlatformTest, ffprobe, main, make_film, make_song


class MainJob(PlatformTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.register("seller")
        cls.register("buyer")
        cls.login_admin()
        cls.film = make_film(cls.path("film.mp4"), seconds=9, size="1280x720")
        cls.song = make_song(cls.path("song.flac"), seconds=7)
        cls.film_item = cls.upload("seller", cls.film, "--title", "Rivers of light", "--price", "5.00 EUR",
                                   "--public", "--wait")["item_id"]
        cls.song_item = cls.upload("seller", cls.song, "--title", "River song", "--public", "--wait")["item_id"]

    def durations(self, path):
        r = ffprobe(path, "-show_streams", "-show_format")
        return float(r["format"]["duration"]), {s["codec_type"]: s["codec_name"] for s in r["streams"]}

    def test_whoami_says_roles(self):
        me = self.ctl("seller", "whoami")
        self.assertEqual(me["name"], "seller")
        self.assertIn("user", me["roles"])

    def test_catalogue_lists_searches_and_pages(self):
        ids = {i["itemId"] for i in self.ctl("buyer", "ls")["items"]}
        self.assertLessEqual({self.film_item, self.song_item}, ids)
        found = [i["itemId"] for i in self.ctl("buyer", "search", "rivers light")["items"]]
        self.assertEqual(found, [self.film_item])
        first = self.request("/api/v1/items?page.size=1").json()
        self.assertEqual(len(first["items"]), 1)
        second = self.request("/api/v1/items?page.size=1&page.token=" + urllib.parse.quote(first["nextPage"])).json()
        self.assertNotEqual(first["items"][0]["itemId"], second["items"][0]["itemId"])

    def test_job_names_every_output(self):
        job = self.ctl("seller", "job", "show", self.film_item)
        self.assertEqual(job["state"], "done")
        by_rendition = {}
        for o in job["outputs"]:
            self.assertEqual(len(base64.b64decode(o["digest"])), 32)
            self.assertGreater(int(o["size"]), 0)
            self.assertTrue(o["worker"])
            self.assertGreaterEqual(o["attempts"], 1)
            by_rendition.setdefault(o["rendition"], set()).add(o.get("segment", 0))
        videos = {r for r in by_rendition if r.startswith("v")}
        self.assertEqual(videos, {"v720", "v480", "v360", "v240"})
        counts = {len(by_rendition[r]) for r in videos}
        self.assertEqual(len(counts), 1, "all rungs have the same segments")

    def test_plays_through_the_client_library(self):
        out = self.path("played.mp4")
        self.ctl("seller", "play", self.film_item, "--out", out)
        duration, codecs = self.durations(out)
        self.assertAlmostEqual(duration, 9, delta=0.15)
        self.assertEqual(codecs, {"video": "h264", "audio": "aac"})
        song = self.path("played-song")
        self.ctl("buyer", "play", self.song_item, "--out", song)
        self.assertAlmostEqual(self.durations(song)[0], 7, delta=0.15)

    def test_plays_through_hls_in_every_level(self):
        token = self.access_token("seller")
        play = self.request(f"/api/v1/items/{self.film_item}/play", token, {"profile": {"neverDirect": True}}).json()
        master = self.request(play["masterUrl"])
        self.assertEqual(master.status, 200)
        variants = re.findall(r"^[^#\n].*$", master.body.decode(), re.M)
        audio = re.findall(r'TYPE=AUDIO.*URI="([^"]+)"', master.body.decode())
        self.assertEqual(len(variants), 4)
        for uri in variants + audio[:1]:
            url = urllib.parse.urljoin(play["masterUrl"], uri)
            playlist = self.request(url).body.decode()
            self.assertIn("#EXT-X-ENDLIST", playlist)
            listed = sum(float(x) for x in re.findall(r"#EXTINF:([0-9.]+)", playlist))
            self.assertAlmostEqual(listed, 9, delta=0.15)
            parts = re.findall(r'#EXT-X-MAP:URI="([^"]+)"', playlist) + re.findall(r"^[^#\n].*$", playlist, re.M)
            path = self.path("hls.mp4")
            with open(path, "wb") as f:
                for p in parts:
                    r = self.request(urllib.parse.urljoin(url, p))
                    self.assertEqual(r.status, 200, p)
                    f.write(r.body)
            got = ffprobe(path, "-count_packets", "-show_entries", "stream=codec_type,nb_read_packets")["streams"][0]
            if got["codec_type"] == "video":
                self.assertEqual(int(got["nb_read_packets"]), 225)

    def test_plays_through_dash(self):
        token = self.access_token("seller")
        play = self.request(f"/api/v1/items/{self.film_item}/play", token, {"profile": {"neverDirect": True}}).json()
        url = urllib.parse.urljoin(self.http, play["dashUrl"])
        for level in range(4):  # one at a time: FFmpeg's demuxer stops where the first of several ends
            got = ffprobe(url, "-select_streams", f"v:{level}", "-count_packets", "-show_streams", "-show_format")
            self.assertEqual(int(got["streams"][0]["nb_read_packets"]), 225)
            self.assertAlmostEqual(float(got["format"]["duration"]), 9, delta=0.15)
        sound = ffprobe(url, "-select_streams", "a", "-show_streams")["streams"]
        self.assertEqual([s["codec_name"] for s in sound], ["aac"])

    def test_has_a_poster_and_tiles(self):
        token = self.access_token("seller")
        play = self.request(f"/api/v1/items/{self.film_item}/play", token, {}).json()
        poster = ffprobe(urllib.parse.urljoin(self.http, play["posterUrl"]), "-show_streams")["streams"][0]
        self.assertEqual((poster["codec_name"], poster["width"], poster["height"]), ("mjpeg", 1280, 720))
        index = self.request(play["tilesUrl"]).body.decode()
        places = re.findall(r"^(tiles\.jpg)#xywh=(\d+),(\d+),160,90$", index, re.M)
        self.assertEqual([(int(x), int(y)) for _, x, y in places], [(0, 0), (160, 0), (320, 0)])
        tiles = urllib.parse.urljoin(urllib.parse.urljoin(self.http, play["tilesUrl"]), places[0][0])
        sheet = ffprobe(tiles, "-show_streams")["streams"][0]
        self.assertEqual((sheet["width"], sheet["height"]), (480, 90))
        preview = self.request(play["previewUrl"])
        self.assertEqual(preview.headers["Content-Type"], "image/webp")
        self.assertEqual((preview.body[8:16], preview.body[30:34]), (b"WEBPVP8X", b"ANIM"))
        song = self.request(f"/api/v1/items/{self.song_item}/play", token, {}).json()
        self.assertNotIn("tilesUrl", song)
        self.assertNotIn("previewUrl", song)

    def test_buyer_pays_once_and_keeps(self):
        self.assertEqual(self.ctl_raw("buyer", "play", self.film_item, "--out", self.path("no")).returncode, 4)
        poor = self.ctl_raw("buyer", "buy", self.film_item)
        self.assertNotEqual(poor.returncode, 0)
        self.ctl("admin", "user", "credit", "buyer", "12.00 EUR")
        first = self.ctl("buyer", "buy", self.film_item, "--idempotency-key", "k-1")
        again = self.ctl("buyer", "buy", self.film_item, "--idempotency-key", "k-1")
        self.assertEqual(first["orderId"], again["orderId"])
        self.assertEqual(self.ctl("buyer", "balance")["balances"], [{"minor": "700", "currency": "EUR"}])
        self.assertIn(self.film_item, json.dumps(self.ctl("buyer", "library", "ls")))
        lib = self.path("library")
        self.ctl("buyer", "library", "download", self.film_item, "--to", lib)
        files = [os.path.join(d, f) for d, _, fs in os.walk(lib) for f in fs]
        media = max(files, key=os.path.getsize)
        self.assertTrue(filecmp.cmp(media, self.film, shallow=False), "the kept file is the uploaded one")
        # A second download finds it there; a damaged one is noticed and mended.
        with open(media, "r+b") as f:
            f.seek(70000)
            byte = f.read(1)
            f.seek(70000)
            f.write(bytes([byte[0] ^ 1]))
        self.ctl("buyer", "library", "download", self.film_item, "--to", lib)
        self.assertTrue(filecmp.cmp(media, self.film, shallow=False), "the damaged copy was repaired")

    def test_sending_the_same_file_again_sends_nothing(self):
        r = self.upload("seller", self.film, "--title", "Again")
        self.assertEqual(int(r.get("sent", r.get("sent_bytes", -1))), 0, r)

    def test_short_input_finishes_inside_one_call(self):
        path = make_film(self.path("short.mp4"), seconds=3, size="320x240")
        r = self.upload("seller", path, "--title", "Short", "--sync")
        self.assertEqual(r["state"], "ready", r)

    def test_examples_upload_and_play(self):
        path = make_film(self.path("example.mp4"), seconds=2, size="320x240")
        env = self.ctl_env("seller")
        up = subprocess.run([os.path.join(BIN, "example-upload"), self.server, "seller", path], env=env, text=True,
                            capture_output=True, timeout=120)
        self.assertEqual(up.returncode, 0, up.stderr)
        item = up.stdout.split()[-1]
        out = self.path("example-out.mp4")
        play = subprocess.run([os.path.join(BIN, "example-play"), self.server, "seller", item, out], env=env, text=True,
                              capture_output=True, timeout=120)
        self.assertEqual(play.returncode, 0, play.stderr)
        self.assertAlmostEqual(self.durations(out)[0], 2, delta=0.2)

    def test_every_node_is_healthy(self):
        nodes = self.ctl("admin", "node", "health")["nodes"]
        self.assertEqual(len(nodes), 9)
        self.assertEqual({n["status"] for n in nodes}, {"SERVING"})
        workers = self.ctl("admin", "worker", "ls")["workers"]
        self.assertEqual(len(workers), 2)

    def test_logs_hold_no_secret(self):
        for name in os.listdir(os.path.join(self.plat.home, "log")):
            with open(os.path.join(self.plat.home, "log", name), errors="replace") as f:
                text = f.read()
            self.assertNotIn("correct horse", text, name)
            self.assertNotIn("v4.public.", text, name)


if __name__ == "__main__":
    main()
