"""Files that are not media: refused within 10 s with a reason, and nothing is left behind."""

import os
import subprocess
import threading
import time

from platform_fixture import PlatformTest, main, make_film


class BadInput(PlatformTest):
    # Origins give an object that nothing pins a time of grace; here it is short enough to wait for.
    env = {"CAUCE_ORIGIN_GRACE": "200ms", "CAUCE_ORIGIN_COLLECT_EVERY": "200ms"}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.register("seller")

    def objects(self):
        return sorted(os.path.join(d, f) for d, _, fs in os.walk(os.path.join(self.plat.home, "objects")) for f in fs
                      if f not in ("format", "lock", "pins.log"))

    def refused(self, name, data):
        path = self.path(name)
        with open(path, "wb") as f:
            f.write(data)
        began = time.monotonic()
        p = self.ctl_raw("seller", "upload", path, "--title", name, "--wait")
        took = time.monotonic() - began
        self.assertNotEqual(p.returncode, 0, p.stdout)
        self.assertRegex(p.stderr, r"[a-z]{3,}", "a reason for people")
        self.assertNotIn("Traceback", p.stderr)
        self.assertLess(took, 10)
        return p.stderr

    def test_empty_file(self):
        self.assertRegex(self.refused("empty.mp4", b""), "empty")

    def test_text_named_mp4(self):
        self.refused("text.mp4", b"This is no film, only words.\n" * 50)

    def test_truncated_mp4_without_index(self):
        film = make_film(self.path("whole.mp4"), seconds=5)
        with open(film, "rb") as f:
            data = f.read()
        self.refused("truncated.mp4", data[: len(data) // 2])

    def test_playlists_and_scripts_named_mp4(self):
        self.refused("hls.mp4", b"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n"
                                b"file:///etc/passwd\n#EXT-X-ENDLIST\n")
        self.refused("concat.mp4", b"ffconcat version 1.0\nfile /etc/passwd\n")
        self.refused("sdp.mp4", b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n")

    def test_nothing_is_left_behind(self):
        film = make_film(self.path("left.mp4"), seconds=5)
        with open(film, "rb") as f:
            data = f.read()
        logs = [self.plat.log(n) for n in ("video-1", "video-2")]
        follow = subprocess.Popen(["tail", "-n", "0", "-F", *logs], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        timer = threading.Timer(60, follow.kill)
        timer.start()
        self.refused("leftover.mp4", data[: len(data) // 2])
        for line in follow.stdout:
            if '"collected"' in line and not self.objects():
                break
        timer.cancel()
        follow.kill()
        follow.wait()
        follow.stdout.close()
        self.assertEqual(self.objects(), [])
        self.assertEqual([i for i in self.ctl("seller", "ls", "--mine")["items"] if i["state"] != "failed"], [])
        for worker in ("worker-1", "worker-2"):
            left = [f for f in os.listdir(os.path.join(self.plat.home, "scratch", worker)) if not f.endswith(".tree")]
            self.assertEqual(left, [])

    def test_the_platform_goes_on_after_hostile_uploads(self):
        for i in range(3):
            self.refused(f"junk{i}.mkv", b"\x1a\x45\xdf\xa3" + os.urandom(5000))
        film = make_film(self.path("good.mp4"), seconds=2, size="320x240", extra=("-metadata", "comment=after"))
        self.assertTrue(self.upload("seller", film, "--wait")["item_id"])


if __name__ == "__main__":
    main()
