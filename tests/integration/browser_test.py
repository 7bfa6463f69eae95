"""hls.js in a real browser plays the uploaded film."""

import json
import os
import shutil
import subprocess
import unittest

from platform_fixture import PASSWORD, SOURCE, PlatformTest, main, make_film

E2E = os.path.join(SOURCE, "tests", "e2e")


class Browser(PlatformTest):
    @classmethod
    def setUpClass(cls):
        chromium = shutil.which("chromium") or os.environ.get("CHROMIUM")
        if not chromium or not shutil.which("node"):
            raise unittest.SkipTest("no chromium or no node")
        if not os.path.isdir(os.path.join(E2E, "node_modules", "playwright-core")):
            npm = subprocess.run(["npm", "ci", "--ignore-scripts"], cwd=E2E, capture_output=True, text=True, timeout=300)
            if npm.returncode:
                raise unittest.SkipTest("npm could not install playwright-core: " + npm.stderr[-300:])
        super().setUpClass()

    def test_film_plays_with_several_levels(self):
        self.register("viewer")
        silent = make_film(self.path("silent.mp4"), seconds=12, size="1280x720")
        with open(self.path("a.srt"), "w") as f:
            f.write("1\n00:00:01,000 --> 00:00:02,500\nearly\n\n2\n00:00:06,800 --> 00:00:09,000\n<i>late</i>\n")
        film = self.path("film.mp4")
        subprocess.run(["ffmpeg", "-y", "-v", "error", "-i", silent, "-i", self.path("a.srt"), "-map", "0:v",
                        "-map", "0:a", "-map", "0:a", "-map", "1", "-c", "copy", "-c:s", "mov_text",
                        "-metadata:s:a:0", "language=eng", "-metadata:s:a:1", "language=deu", "-metadata:s:s:0", "language=eng", "-disposition:s:0", "default", film], check=True)
        item = self.upload("viewer", film, "--title", "For the browser", "--public", "--wait")["item_id"]
        shot = os.environ.get("CAUCE_SCREENSHOT", self.path("shot.png"))
        p = subprocess.run(["node", "player.js", self.http, item, "viewer", PASSWORD, shot], cwd=E2E,
                           capture_output=True, text=True, timeout=240)
        self.assertEqual(p.returncode, 0, p.stderr[-2000:])
        r = json.loads(p.stdout)
        self.assertGreater(r["currentTime"], 7)
        self.assertAlmostEqual(r["duration"], 12, delta=0.2)
        self.assertGreaterEqual(len(r["levels"]), 4, r)
        self.assertEqual(r["languages"], ["eng", "deu"])
        self.assertEqual(r["cues"], [["eng", 1, 2.5, "early"], ["eng", 6.8, 9, "<i>late</i>"]])
        self.assertIsNone(r["error"])
        self.assertEqual(r["errors"], [])


if __name__ == "__main__":
    main()
