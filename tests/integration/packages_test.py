"""What players are given: the decision, playlists, manifests, and one file to keep."""

import fcntl
import json
import os
import re
import subprocess
import time
import urllib.parse

from platform_fixture import PlatformTest, ffprobe, main

FPS, SECONDS = 25, 9
MADE_S = 240  # each request waits up to 30 s by itself


def make_film(path):
    """B-frames, two languages, a beep and a flash at second 3 that tell how picture and sound meet."""
    flash = f"color=black:size=320x180:rate={FPS}:duration={SECONDS},drawbox=c=white:t=fill:enable='between(t,3,3.4)'"
    beep = f"aevalsrc='if(between(t,3,3.4),0.8*sin(2*PI*880*t),0)':s=48000:d={SECONDS}"
    subprocess.run(["ffmpeg", "-y", "-v", "error", "-f", "lavfi", "-i", flash, "-f", "lavfi", "-i", beep,
                    "-f", "lavfi", "-i", f"sine=frequency=330:sample_rate=48000:duration={SECONDS}",
                    "-map", "0", "-map", "1", "-map", "2", "-c:v", "libx264", "-preset", "veryfast", "-bf", "3",
                    "-g", "50", "-pix_fmt", "yuv420p", "-c:a", "aac", "-metadata:s:a:0", "language=eng",
                    "-metadata:s:a:1", "language=deu", path], check=True)
    return path


def first_pts(url, stream):
    frames = ffprobe(url, "-select_streams", stream, "-read_intervals", "%+1", "-show_entries", "frame=pts_time")["frames"]
    return float(frames[0]["pts_time"])


def flash_and_beep(url):
    """When the picture turns white and when the sound begins, in seconds, as FFmpeg decodes them."""
    def times(words):
        p = subprocess.run(["ffmpeg", "-v", "info", "-nostats", "-copyts", "-i", url, *words, "-f", "null", "-"],
                           check=True, capture_output=True, text=True)
        return p.stderr
    black = re.findall(r"black_end:([0-9.]+)", times(["-map", "0:v:0", "-vf", "blackdetect=d=0.5:pix_th=0.2", "-an"]))
    silence = re.findall(r"silence_end: ([0-9.]+)", times(["-map", "0:a:0", "-af", "silencedetect=n=-30dB:d=0.5", "-vn"]))
    return float(black[0]), float(silence[0])


def loudness(url):
    """Integrated loudness of the first channel on both sides, LUFS, as FFmpeg hears it."""
    p = subprocess.run(["ffmpeg", "-v", "info", "-nostats", "-i", url, "-map", "0:a:0", "-vn",
                        "-af", "pan=stereo|c0=c0|c1=c0,ebur128", "-f", "null", "-"],
                       check=True, capture_output=True, text=True)
    return float(re.findall(r"I:\s+(-?[0-9.]+) LUFS", p.stderr)[-1])


class Packages(PlatformTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.register("seller")
        cls.film = make_film(cls.path("film.mp4"))
        cls.item = cls.upload("seller", cls.film, "--title", "Flash and beep", "--public", "--wait")["item_id"]
        cls.token = cls.access_token("seller")

    def play(self, **body):
        return self.request(f"/api/v1/items/{self.item}/play", self.token, body).json()

    def url(self, path):
        return urllib.parse.urljoin(self.http, path)

    def variant(self, play, **match):
        master = self.request(play["masterUrl"]).body.decode()
        lines = re.findall(r"^[^#\n].*$", master, re.M)
        return self.url(urllib.parse.urljoin(play["masterUrl"], lines[0]))

    def languages(self, play):
        """Those that the plan has sound in: the second track's is there when the codec makes it."""
        return ["eng"] + ["deu"] * any(r["id"] == "a128-2" for r in play["renditions"])

    def made(self, url):
        """Asks for a segment as players do, again as long as it is being made."""
        end = time.monotonic() + MADE_S
        while True:
            r = self.request(url)
            if r.status != 503 or time.monotonic() > end:
                self.assertEqual(r.status, 200, r.body[:200])
                return r.body

    # ---- the decision

    def test_even_loudness_is_made_by_what_was_measured(self):
        play = self.play(wishes={"normalised": True})
        self.assertEqual(play["audioRendition"], "a128n")
        told = play["loudness"]
        was, peak = (told.get(k, 0) / 1000 for k in ("integratedMlufs", "truePeakMdb"))
        self.assertAlmostEqual(loudness(self.film), was, delta=0.3)
        self.assertAlmostEqual(loudness(self.url(play["masterUrl"])), was + min(-16 - was, -1 - peak), delta=1)

    def test_decision_is_explained(self):
        d = self.ctl("seller", "play", "explain", self.item, "--profile", "mpv")
        self.assertEqual(d["decision"]["method"], "METHOD_DIRECT")
        d = self.ctl("seller", "play", "explain", self.item, "--profile", "mpv", "--max-height", "100")
        self.assertEqual(d["decision"]["method"], "METHOD_TRANSCODE")
        self.assertEqual([r["reason"] for r in d["decision"]["reasons"]], ["REASON_LIMIT_HEIGHT"])
        text = self.ctl_raw("seller", "play", "explain", self.item, "--profile", "chrome", "--never-direct").stdout
        self.assertIn("asked renditions", text)
        self.assertRegex(text, r"(?m)^0 +video +h264 ")
        self.assertRegex(text, r"(?m)^a128 .*<-")

    def test_custom_profile_is_checked_with_a_path(self):
        path = self.path("player.json")
        with open(path, "w") as f:
            json.dump({"containers": [{"containers": ["mp4"], "video": ["h264"], "audio": ["aac"]}],
                       "video": [{"codecs": ["h264"], "maxHeight": 100}], "audio": [{"codecs": ["aac"]}]}, f)
        d = self.ctl("seller", "play", "explain", self.item, "--profile", path)
        self.assertIn("REASON_VIDEO_SIZE", [r["reason"] for r in d["decision"]["reasons"]])
        with open(path, "w") as f:
            json.dump({"video": [{"codecs": ["h264"], "maxHight": 100}]}, f)
        p = self.ctl_raw("seller", "play", "explain", self.item, "--profile", path)
        self.assertEqual(p.returncode, 1)
        self.assertIn("video[0].maxHight", p.stderr)
        p = self.ctl_raw("seller", "play", "explain", self.item, "--profile", "netscape")
        self.assertEqual(p.returncode, 3)
        self.assertIn("chrome", p.stderr)

    def test_address_carries_the_decision(self):
        wishes = {"audioLanguage": "deu", "noDirect": True, "noCopies": True}
        play = self.play(player="roku", wishes=wishes, limits={"maxHeight": 240})
        self.assertEqual(play["decision"]["method"], "METHOD_TRANSCODE")
        german = self.languages(play) == ["eng", "deu"]
        self.assertTrue(play["masterUrl"].endswith("/master-p240-t3.m3u8" if german else "/master-p240.m3u8"))
        master = self.request(play["masterUrl"]).body.decode()
        self.assertIn('NAME="eng",DEFAULT=' + ("NO" if german else "YES"), master)
        bad = urllib.parse.urljoin(play["masterUrl"], "master-everything.m3u8")
        self.assertEqual(self.request(bad).status, 404)

    # ---- what players made of FFmpeg see

    def check_player(self, url):
        self.assertAlmostEqual(first_pts(url, "v:0"), 0, delta=0.001)
        flash, beep = flash_and_beep(url)
        self.assertAlmostEqual(flash, 3, delta=0.001)
        self.assertAlmostEqual(beep, 3, delta=0.02)

    def test_hls_begins_at_zero_with_sound_and_picture_together(self):
        play = self.play(profile={"neverDirect": True})
        self.check_player(self.url(play["masterUrl"]))
        frames = ffprobe(self.variant(play), "-select_streams", "v", "-count_frames", "-show_streams")["streams"][0]
        self.assertEqual(int(frames["nb_read_frames"]), FPS * SECONDS)

    def test_dash_begins_at_zero_with_sound_and_picture_together(self):
        self.check_player(self.url(self.play(profile={"neverDirect": True})["dashUrl"]))

    def test_playlists_tell_languages_and_measured_rates(self):
        play = self.play(profile={"neverDirect": True})
        master = self.request(play["masterUrl"]).body.decode()
        self.assertEqual(re.findall(r'LANGUAGE="(\w+)"', master), self.languages(play))
        # As planned, or once it has heard that all is made, as measured: black pictures take far less.
        peak, mean = map(int, re.search(r"STREAM-INF:BANDWIDTH=(\d+),AVERAGE-BANDWIDTH=(\d+)", master).groups())
        planned = {r["id"]: int(r["bandwidth"]) for r in play["renditions"]}
        first = re.search(r"^(v\d+)\.m3u8$", master, re.M)[1]
        self.assertTrue(mean <= peak < planned[first] or peak == planned[first] + planned["a128"], peak)
        manifest = self.request(play["dashUrl"]).body.decode()
        self.assertEqual(sorted(set(re.findall(r'lang="(\w+)"', manifest))), sorted(self.languages(play)))

    def test_first_pictures_are_listed_and_served(self):
        play = self.play(profile={"neverDirect": True})
        master = self.request(play["masterUrl"]).body.decode()
        uri = re.search(r'I-FRAME-STREAM-INF:.*URI="([^"]+)"', master)[1]
        url = self.url(urllib.parse.urljoin(play["masterUrl"], uri))
        playlist = self.request(url).body.decode()
        self.assertIn("#EXT-X-I-FRAMES-ONLY", playlist)
        parts = re.findall(r"^[^#\n].*$", playlist, re.M)
        frames = ffprobe(url, "-select_streams", "v", "-show_entries", "frame=pict_type,pts_time")["frames"]
        self.assertEqual([f["pict_type"] for f in frames], ["I"] * len(parts))
        second = float(re.search(r"#EXTINF:([0-9.]+)", playlist)[1])
        self.assertAlmostEqual(float(frames[1]["pts_time"]), second, delta=0.001)

    # ---- packets packed anew

    def test_remux_shows_the_sources_own_pictures(self):
        mkv = self.path("film.mkv")
        subprocess.run(["ffmpeg", "-y", "-v", "error", "-i", self.film, "-map", "0", "-c", "copy", mkv], check=True)
        item = self.upload("seller", mkv, "--title", "In another box", "--public", "--wait")["item_id"]
        wish = {"player": "chrome", "purpose": "DOWNLOAD"}
        play = self.request(f"/api/v1/items/{item}/play", self.token, wish).json()
        self.assertEqual(play["decision"]["method"], "METHOD_REMUX")
        self.assertEqual(play["decision"]["reasons"][0]["reason"], "REASON_CONTAINER")
        self.assertEqual(play["videoRendition"], "vcopy")
        url = self.variant(play)
        self.assertIn("/vcopy.m3u8", url)
        for part in re.findall(r"^[^#\n].*$", self.request(url).body.decode(), re.M):
            self.made(urllib.parse.urljoin(url, part))
        self.check_player(self.url(play["masterUrl"]))
        kept = self.path("remuxed.mp4")
        with open(kept, "wb") as f:
            f.write(self.request(play["fileUrl"]).body)
        self.check_player(kept)
        pictures = [subprocess.run(["ffmpeg", "-v", "error", "-i", u, "-map", "0:v:0", "-f", "framehash", "-hash", "md5",
                                    "-"], check=True, capture_output=True, text=True).stdout for u in (mkv, url, kept)]
        hashes = [re.findall(r"([0-9a-f]{32})$", p, re.M) for p in pictures]
        self.assertEqual(len(hashes[0]), FPS * SECONDS)
        self.assertEqual(hashes[0], hashes[1])
        self.assertEqual(hashes[0], hashes[2])

    # ---- one file

    def download(self, **body):
        return self.play(purpose="DOWNLOAD", profile={"neverDirect": True}, **body)

    def test_one_file_is_whole_and_plays_while_it_comes(self):
        play = self.download()
        r = self.request(play["fileUrl"])
        self.assertEqual((r.status, r.headers["Content-Type"]), (200, "video/mp4"))
        self.assertEqual(int(r.headers["Content-Length"]), len(r.body))
        self.assertIn('filename="Flash and beep.mp4"', r.headers["Content-Disposition"])
        self.assertLess(r.body.find(b"moov"), r.body.find(b"mdat"))
        path = self.path("whole.mp4")
        with open(path, "wb") as f:
            f.write(r.body)
        self.check_player(path)
        got = ffprobe(path, "-count_frames", "-show_streams", "-show_format")
        video, audio = got["streams"]
        self.assertEqual(int(video["nb_read_frames"]), FPS * SECONDS)
        self.assertEqual((float(video["start_time"]), float(audio["start_time"])), (0, 0))
        self.assertAlmostEqual(float(video["duration"]), SECONDS, delta=0.001)
        self.assertAlmostEqual(float(audio["duration"]), SECONDS, delta=0.03)
        packets = ffprobe(path, "-show_entries", "packet=flags", "-select_streams", "v")["packets"]
        self.assertGreater(sum("K" in p["flags"] for p in packets), 1)

    def test_one_file_comes_in_ranges(self):
        url = self.download()["fileUrl"]
        whole = self.request(url)
        etag = whole.headers["ETag"]
        n = len(whole.body)
        for first, last in ((0, 0), (0, 99), (n // 3, n // 2), (n - 1, n - 1), (100, n - 1)):
            r = self.request(url, headers={"Range": f"bytes={first}-{last}", "If-Range": etag})
            self.assertEqual(r.status, 206)
            self.assertEqual(r.headers["Content-Range"], f"bytes {first}-{last}/{n}")
            self.assertTrue(r.body == whole.body[first:last + 1], f"bytes {first} to {last}")
        self.assertEqual(self.request(url, headers={"If-None-Match": etag}).status, 304)
        self.assertEqual(self.request(url, method="HEAD").headers["Content-Length"], str(n))

    def test_one_file_of_other_renditions(self):
        url = self.download()["fileUrl"]
        lowest = [r["id"] for r in self.play()["renditions"] if re.fullmatch(r"v\d+", r["id"])][-1]
        for names, kinds in ((lowest, ["video", "audio"]), ("a128", ["audio"]), (lowest + "+a128", ["video", "audio"])):
            path = self.path("other.mp4")
            r = self.request(urllib.parse.urljoin(url, names + ".mp4"))
            self.assertEqual(r.status, 200, r.body[:300])
            with open(path, "wb") as f:
                f.write(r.body)
            self.assertEqual([s["codec_type"] for s in ffprobe(path, "-show_streams")["streams"]], kinds, names)
        for names in ("v9999", "a128+" + lowest, lowest + "+", "+a128", "a128+a128"):
            self.assertEqual(self.request(urllib.parse.urljoin(url, names + ".mp4")).status, 404, names)
        playing = self.play(profile={"neverDirect": True})["masterUrl"]
        self.assertEqual(self.request(urllib.parse.urljoin(playing, "a128.mp4")).status, 403)

    def test_sound_is_as_long_in_every_rendition(self):
        play = self.download()
        path = self.path("sound.mp4")
        for rendition in [r["id"] for r in play["renditions"] if r["kind"] == "audio"]:
            with open(path, "wb") as f:
                f.write(self.made(urllib.parse.urljoin(play["fileUrl"], rendition + ".mp4")))
            sound = ffprobe(path, "-show_streams")["streams"][0]
            self.assertEqual(float(sound["start_time"]), 0, rendition)
            self.assertAlmostEqual(float(sound["duration"]), SECONDS, delta=0.005, msg=rendition)

    def test_save_writes_the_same_file_and_goes_on_where_it_was_cut(self):
        url = self.download()["fileUrl"]
        whole = self.request(url).body
        names = urllib.parse.unquote(url.rsplit("/", 1)[1])[:-len(".mp4")]
        path = self.path("kept.mp4")
        saved = self.ctl("seller", "download", self.item, "--rendition", names, "-o", path)
        self.assertEqual(saved["bytes"], len(whole))
        with open(path, "rb") as f:
            self.assertTrue(f.read() == whole)
        for cut, damaged in ((len(whole) // 2, False), (100, False), (len(whole) // 2, True), (0, False)):
            with open(path + ".part", "wb") as f:
                f.write(b"\0" * 50 + whole[50:cut] if damaged else whole[:cut])
            saved = self.ctl("seller", "download", self.item, "--rendition", names, "-o", path)
            with open(path, "rb") as f:
                self.assertTrue(f.read() == whole, f"cut at {cut}")
            self.assertFalse(os.path.exists(path + ".part"))
            if cut > 1000 and not damaged:
                self.assertLess(saved["received"], saved["bytes"])
        with open(path + ".part", "wb") as f:  # another download's
            fcntl.flock(f, fcntl.LOCK_EX)
            p = self.ctl_raw("seller", "download", self.item, "--rendition", names, "-o", path)
            self.assertIn("another download is writing", p.stderr)
            self.assertEqual(p.returncode, 1)
        os.unlink(path + ".part")
        p = self.ctl_raw("seller", "download", self.item, "--rendition", "v9999", "-o", path)
        self.assertEqual(p.returncode, 3)
        self.assertIn("v9999", p.stderr)
        self.assertEqual(self.ctl_raw("seller", "download", self.item).returncode, 2)


if __name__ == "__main__":
    main()
