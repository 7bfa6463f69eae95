"""Files that are not media: refused within 10 s with a reason, and nothing is left behind."""

import os
import time

from platform_fixture import PlatformTest, main, make_film


class BadInput(PlatformTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.register("seller")

    def objects(self):
        return sorted(os.path.join(d, f) for d, _, fs in os.walk(os.path.join(self.plat.home, "objects")) for f in fs
                      if os.path.getsize(os.path.join(d, f)) and "pin" not in d)

    def refused(self, name, data):
        path = self.path(name)
        with open(path, "wb") as f:
            f.write(data)
        tail = self.events("seller")
        began = time.monotonic()
        p = self.ctl_raw("seller", "upload", path, "--title", name, "--wait")
        took = time.monotonic() - began
        self.assertNotEqual(p.returncode, 0, p.stdout)
        self.assertRegex(p.stderr, r"[a-z]{3,}", "a reason for people")
        self.assertNotIn("Traceback", p.stderr)
        self.assertLess(took, 10)
        tail.kill()
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
        before = self.objects()
        self.refused("leftover.mp4", os.urandom(300000))
        tail = self.events("seller", topic="upload")
        self.until(tail, lambda e: e["kind"] in ("upload.dropped", "upload.failed"), timeout=30)
        self.assertEqual(self.objects(), before)
        items = self.ctl("seller", "ls", "--mine")["items"] if items_have_mine(self) else []
        self.assertFalse([i for i in items if i.get("state") == "ready"])
        self.assertEqual(os.listdir(os.path.join(self.plat.home, "scratch", "worker-1")), [])

    def test_the_platform_goes_on_after_hostile_uploads(self):
        for i in range(3):
            self.refused(f"junk{i}.mkv", b"\x1a\x45\xdf\xa3" + os.urandom(5000))
        film = make_film(self.path("good.mp4"), seconds=2, size="320x240", extra=("-metadata", "comment=after"))
        self.assertTrue(self.upload("seller", film, "--wait")["item_id"])


def items_have_mine(test):
    return test.ctl_raw("seller", "ls", "--mine", "--json").returncode == 0


if __name__ == "__main__":
    main()
