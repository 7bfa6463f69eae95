"""What crosses the loopback interface between processes is unreadable: calls, streams and published events."""

import json
import os
import re
import select
import shutil
import subprocess
import unittest

from platform_fixture import PASSWORD, PlatformTest, main, make_film


def listening_ports(pids):
    """Every TCP port that one of these processes listens on."""
    inodes, ports = set(), set()
    for pid in pids:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            m = re.match(r"socket:\[(\d+)\]", os.readlink(f"/proc/{pid}/fd/{fd}"))
            inodes.update(m.groups() if m else ())
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with open(table) as f:
            for row in [line.split() for line in f][1:]:
                if row[3] == "0A" and row[9] in inodes:
                    ports.add(int(row[1].rsplit(":", 1)[1], 16))
    return ports


class Capture(PlatformTest):
    env = {"CAUCE_LINKS": "tcp"}

    @classmethod
    def setUpClass(cls):
        if os.geteuid() or not shutil.which("tcpdump"):
            raise unittest.SkipTest("capturing needs root and tcpdump")
        super().setUpClass()
        cls.addClassCleanup(os.environ.pop, "CAUCE_LINKS", None)

    def events_port(self, node):
        with open(os.path.join(self.plat.ready, node)) as f:
            return int(json.load(f)["events"].rsplit(":", 1)[1])

    def n_packets(self, pcap, expression):
        return len(subprocess.run(["tcpdump", "-n", "-q", "-r", pcap, expression], stdout=subprocess.PIPE,
                                  stderr=subprocess.DEVNULL, check=True).stdout.splitlines())

    def test_nothing_readable_between_processes(self):
        # The machine may have other platforms: ours is what our processes listen on.
        ports = listening_ports([n["pid"] for n in self.plat.status() if n["pid"]])
        http_port = int(self.http.rstrip("/").rsplit(":", 1)[1])
        self.assertIn(http_port, ports)
        published = [self.events_port(n) for n in ("session-1", "orchestrator-1", "store-1")]
        self.assertLessEqual(set(published), ports)
        ports -= {http_port}
        pcap = self.path("loopback.pcap")
        dump = subprocess.Popen(["tcpdump", "-i", "lo", "-U", "-w", pcap, "-B", "65536", "-s", "0",
                                 "tcp and (" + " or ".join(f"port {p}" for p in sorted(ports)) + ")"],
                                stderr=subprocess.PIPE)
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
        self.assertGreater(self.n_packets(pcap, f"tcp src port {published[0]} and greater 150"), 0,
                           "the capture saw what session publishes")
        for needle in (PASSWORD.encode(), title.encode(), item.encode(), b"v4.public.", b"seller", b"moof", b"ftyp",
                       b"cauce.session", b"cauce.origin", b"user.registered", b"login.ok", b"item.playable",
                       data[len(data) // 2:][:32]):
            self.assertFalse(needle in seen, f"{needle} can be read")


if __name__ == "__main__":
    main()
