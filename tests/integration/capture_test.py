"""What crosses the loopback interface between processes is unreadable."""

import os
import select
import shutil
import subprocess
import unittest

from platform_fixture import PASSWORD, PlatformTest, main, make_film


class Capture(PlatformTest):
    env = {"CAUCE_LINKS": "tcp"}

    @classmethod
    def setUpClass(cls):
        if os.geteuid() or not shutil.which("tcpdump"):
            raise unittest.SkipTest("capturing needs root and tcpdump")
        super().setUpClass()
        cls.addClassCleanup(os.environ.pop, "CAUCE_LINKS", None)

    def test_nothing_readable_between_processes(self):
        http_port = self.http.rstrip("/").rsplit(":", 1)[1]
        pcap = self.path("loopback.pcap")
        dump = subprocess.Popen(["tcpdump", "-i", "lo", "-U", "-w", pcap, "-B", "65536", "-s", "0",
                                 f"tcp and not port {http_port}"], stderr=subprocess.PIPE)
        self.addCleanup(dump.stderr.close)
        select.select([dump.stderr], [], [], 10)  # its first line says that it listens
        title = "Unmistakable Title 4711"
        self.register("seller")
        film = make_film(self.path("film.mp4"), seconds=3, size="320x240")
        item = self.upload("seller", film, "--title", title, "--public", "--wait")["item_id"]
        self.ctl("seller", "play", item, "--out", self.path("out.mp4"))
        self.ctl("seller", "search", "unmistakable")
        dump.terminate()
        dump.wait(10)
        with open(pcap, "rb") as f:
            seen = f.read()
        with open(film, "rb") as f:
            data = f.read()
        self.assertGreater(len(seen), 2 * len(data), "the capture saw the upload and the play")
        for needle in (PASSWORD.encode(), title.encode(), item.encode(), b"v4.public.", b"seller", b"moof", b"ftyp",
                       b"cauce.session", b"cauce.origin", data[len(data) // 2:][:32]):
            self.assertNotIn(needle, seen, needle)


if __name__ == "__main__":
    main()
