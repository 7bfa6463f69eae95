"""Text of a film: from its source, added afterwards, in playlists, in pieces, and burnt into the picture."""

import json
import subprocess
import time

from platform_fixture import PlatformTest, main

SRT = "1\n00:00:00,500 --> 00:00:01,500\nfirst <i>one</i>\n\n2\n00:00:04,000 --> 00:00:05,000\nsecond\n"
ASS = """[Script Info]
ScriptType: v4.00+
PlayResX: 256
PlayResY: 144

[V4+ Styles]
Format: Name, Fontname, Fontsize, PrimaryColour, SecondaryColour, OutlineColour, BackColour, Bold, Italic, Underline, \
StrikeOut, ScaleX, ScaleY, Spacing, Angle, BorderStyle, Outline, Shadow, Alignment, MarginL, MarginR, MarginV, Encoding
Style: Default,Sans,24,&H00FFFFFF,&H000000FF,&H00000000,&H00000000,0,0,0,0,100,100,0,0,1,2,0,2,10,10,10,1

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
Dialogue: 0,0:00:00.00,0:00:01.00,Default,,0,0,0,,Hello
"""


class Subtitles(PlatformTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.register("ana")
        for name, text in (("a.srt", SRT), ("b.ass", ASS)):
            with open(cls.path(name), "w") as f:
                f.write(text)
        film = cls.path("film.mkv")
        subprocess.run(["ffmpeg", "-y", "-v", "error", "-f", "lavfi", "-i", "color=gray:s=256x144:r=25:d=6", "-i", cls.path("a.srt"),
                        "-i", cls.path("b.ass"), "-map", "0", "-map", "1", "-map", "2", "-c:v", "mpeg4", "-g", "25", "-c:s:0", "srt",
                        "-c:s:1", "ass", "-metadata:s:s:0", "language=eng", "-metadata:s:s:1", "language=ger",
                        "-disposition:s:1", "forced", film], check=True)
        cls.item = cls.upload("ana", film, "--wait")["item_id"]

    def play(self):
        token = self.access_token("ana")
        r = self.request(f"/api/v1/items/{self.item}/play", token=token, body={})
        self.assertEqual(r.status, 200, r.body)
        return r.json()

    def get(self, url):
        r = self.request(url)
        end = time.monotonic() + 240
        while r.status == 503 and time.monotonic() < end:  # not made yet: the gateway has waited for it already
            r = self.request(url)
        self.assertEqual(r.status, 200, (url, r.body))
        return r.body

    def add(self, path, *words):
        """The text as it is once a worker has seen it; a busy one may take longer than the call waits."""
        p = self.ctl_raw("ana", "subtitles", "add", "--timeout", "60s", self.item, path, *words, "--json")
        if p.returncode:
            return {"id": "", "state": "failed", "reason": p.stderr}
        text = json.loads(p.stdout)
        end = time.monotonic() + 240
        while text["state"] == "converting" and time.monotonic() < end:
            text = next(s for s in self.ctl("ana", "subtitles", "ls", self.item)["subtitles"] if s["id"] == text["id"])
        return text

    def test_1_text_of_the_source_is_there(self):
        p = self.play()
        self.assertEqual([(s["id"], s["language"]) for s in p["subtitles"]], [("s1", "eng"), ("s2", "ger")])
        base = p["masterUrl"].rsplit("/", 1)[0]
        master = self.get(p["masterUrl"]).decode()
        self.assertIn('TYPE=SUBTITLES,GROUP-ID="subs",NAME="eng",LANGUAGE="eng",DEFAULT=NO,AUTOSELECT=YES,FORCED=NO', master)
        self.assertIn('LANGUAGE="ger",DEFAULT=NO,AUTOSELECT=YES,FORCED=YES,URI="s2.m3u8"', master)
        for line in master.splitlines():
            if line.startswith("#EXT-X-STREAM-INF"):
                self.assertIn(',SUBTITLES="subs"', line)
        self.assertIn("s1/0.vtt", self.get(base + "/s1.m3u8").decode())
        self.assertEqual(self.get(base + "/s1.vtt").decode(),
                         "WEBVTT\n\n00:00:00.500 --> 00:00:01.500\nfirst <i>one</i>\n\n00:00:04.000 --> 00:00:05.000\nsecond\n")
        self.assertTrue(self.get(base + "/s1/0.vtt").startswith(b"WEBVTT\nX-TIMESTAMP-MAP=MPEGTS:0,LOCAL:00:00:00.000\n"))
        self.assertIn(b"<BaseURL>s2.vtt</BaseURL>", self.get(base + "/manifest.mpd"))

    def test_2_text_is_added_replaced_and_removed(self):
        with open(self.path("c.srt"), "wb") as f:
            f.write("1\n00:00:02,000 --> 00:00:03,000\nfünf & mehr\n".encode("latin-1"))
        added = self.add(self.path("c.srt"), "--lang", "de", "--title", "Deutsch")
        self.assertEqual((added["id"], added["state"]), ("x1", "ready"))
        with open(self.path("bad.srt"), "w") as f:
            f.write("no times, no text\n")
        bad = self.add(self.path("bad.srt"))
        self.assertEqual(bad["state"], "failed")
        self.assertIn("no subtitle can be read from the file", bad["reason"])
        again = self.add(self.path("a.srt"), "--replace", "x1")
        self.assertEqual(again["id"], "x3")
        listed = self.ctl("ana", "subtitles", "ls", self.item)["subtitles"]
        self.assertEqual([(s["id"], s["state"]) for s in listed],
                         [("s1", "ready"), ("s2", "ready"), ("x2", "failed"), ("x3", "ready")])
        p = self.play()
        self.assertEqual([s["id"] for s in p["subtitles"]], ["s1", "s2", "x3"])
        self.assertIn(b"first", self.get(p["subtitles"][2]["url"]))
        self.ctl("ana", "subtitles", "rm", self.item, "x3")
        self.assertEqual([s["id"] for s in self.play()["subtitles"]], ["s1", "s2"])
        self.assertEqual(self.ctl("ana", "job", "show", self.item)["state"], "done")

    def test_4_what_is_said_is_found(self):
        tail = self.events("ana")
        self.add(self.path("a.srt"))
        self.until(tail, lambda e: e["kind"] == "subtitle.added" and "x4" in json.dumps(e["data"]))
        end = time.monotonic() + 120
        hits = []
        while {h["subtitle"] for h in hits} != {"s1", "x4"} and time.monotonic() < end:
            hits = self.ctl("ana", "search", "--spoken", "second").get("hits", [])
        self.assertEqual({(h["subtitle"], int(h["startMs"])) for h in hits}, {("s1", 4000), ("x4", 4000)})
        self.assertEqual(hits[0]["words"], "second")

    def picture(self, base, rendition):
        """The brightness of the segment's first picture, point by point."""
        film = self.get(f"{base}/{rendition}/init.mp4") + self.get(f"{base}/{rendition}/0.m4s")
        return subprocess.run(["ffmpeg", "-v", "error", "-i", "-", "-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "gray", "-"],
                              input=film, check=True, capture_output=True).stdout

    def test_3_styled_text_is_burnt_in_when_it_is_asked_for(self):
        base = self.play()["masterUrl"].rsplit("/", 1)[0]
        plain, burnt = self.picture(base, "v240"), self.picture(base, "v240-s2")
        self.assertEqual(len(plain), 256 * 144)
        self.assertEqual(len(burnt), len(plain))
        top = max(abs(a - b) for a, b in zip(plain[:256 * 48], burnt[:256 * 48]))
        bottom = sum(abs(a - b) > 60 for a, b in zip(plain[256 * 96:], burnt[256 * 96:]))
        self.assertLess(top, 8)
        self.assertGreater(bottom, 200)


if __name__ == "__main__":
    main()
