"""compose/compose.yaml: the platform in containers, from images built here, plays an uploaded film."""

import glob
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import unittest

from platform_fixture import BIN, PASSWORD, SOURCE, main, make_film

PROJECT = f"cauce-test-{os.getpid()}"


class Engine:
    """A Docker engine: the one that runs, or one of our own for the length of the test."""

    def __init__(self):
        self.process = None
        self.dir = None
        # BuildKit skips the stages that are not asked for; Debian's own client has it built in.
        self.env = dict(os.environ, DOCKER_BUILDKIT="1", COMPOSE_DOCKER_CLI_BUILD="1",
                        PATH="/usr/bin:" + os.environ["PATH"])
        if subprocess.run(["docker", "info"], env=self.env, capture_output=True).returncode == 0:
            return
        self.dir = tempfile.mkdtemp(prefix="cauce-docker-")
        sock = f"unix://{self.dir}/docker.sock"
        self.log = open(os.path.join(self.dir, "log"), "wb")
        self.process = subprocess.Popen(["dockerd", "--data-root", self.dir + "/data", "--exec-root", self.dir + "/exec",
                                         "-H", sock, "-p", self.dir + "/pid"], stderr=subprocess.PIPE, text=True,
                                        start_new_session=True)
        self.env["DOCKER_HOST"] = sock
        for line in self.process.stderr:  # ends by itself when dockerd gives up
            self.log.write(line.encode())
            if "API listen on" in line:
                break
        if self.process.poll() is not None or \
                subprocess.run(["docker", "info"], env=self.env, capture_output=True).returncode:
            self.close()
            raise unittest.SkipTest("no Docker engine can be started here")
        threading.Thread(target=self.drain, daemon=True).start()

    def drain(self):
        for _ in self.process.stderr:  # its chatter must not fill the pipe
            pass

    def close(self):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(60)
            self.process.stderr.close()
        if self.dir:
            self.log.close()
            subprocess.run(["sh", "-c", f"umount -R {self.dir}/* 2>/dev/null; true"])
            shutil.rmtree(self.dir, ignore_errors=True)


class Containers(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if os.geteuid():
            raise unittest.SkipTest("starting a Docker engine needs root")
        for tool in ("dockerd", "docker-compose", "debootstrap"):
            if not shutil.which(tool):
                raise unittest.SkipTest(f"no {tool}: compose/deps containers installs it")
        cls.engine = Engine()
        cls.addClassCleanup(cls.engine.close)
        cls.dir = tempfile.mkdtemp(prefix="cauce-containers-")
        cls.addClassCleanup(shutil.rmtree, cls.dir, True)
        cls.base_image()
        image = os.path.join(SOURCE, "build", "image")
        shutil.rmtree(image, ignore_errors=True)
        cls.addClassCleanup(shutil.rmtree, image, True)
        cls.run_ok(["cmake", "--install", os.path.dirname(BIN), "--prefix", image, "--strip"])
        cls.addClassCleanup(cls.compose, "down", "--volumes", "--timeout", "10")
        cls.compose("build", timeout=900)
        cls.compose("up", "-d", timeout=300)

    @classmethod
    def run_ok(cls, argv, timeout=900):
        p = subprocess.run(argv, env=cls.engine.env, capture_output=True, text=True, timeout=timeout, cwd=SOURCE)
        if p.returncode:
            raise AssertionError(f"{argv[:4]} ended with {p.returncode}: {(p.stdout + p.stderr)[-1500:]}")
        return p.stdout

    @classmethod
    def compose(cls, *words, timeout=300):
        cls.engine.env.update(CAUCE_RPC_PORT="0", CAUCE_HTTP_PORT="0")
        return cls.run_ok(["docker-compose", "-p", PROJECT, "-f", "compose/compose.yaml",
                           "-f", "compose/compose.test.yaml", *words], timeout)

    @classmethod
    def base_image(cls):
        """Debian made here, with what the images need already in it: nothing is pulled."""
        if subprocess.run(["docker", "image", "inspect", "cauce-base:test"], env=cls.engine.env,
                          capture_output=True).returncode == 0:
            return
        with open(os.path.join(SOURCE, "compose", "deps")) as f:
            text = f.read()
        packages = []
        for group in ("serve", "database"):
            packages += text.split(f"\n{group}=\"", 1)[1].split('"', 1)[0].split()
        root = os.path.join(cls.dir, "root")
        mirror = []
        for f in glob.glob("/etc/apt/sources.list.d/*.sources") + glob.glob("/etc/apt/sources.list"):
            with open(f) as sources:
                for line in sources:
                    words = line.split()
                    if words and words[0] in ("URIs:", "deb") and "security" not in line:
                        mirror.append(next(w for w in words[1:] if "://" in w))
        p = subprocess.run(["debootstrap", "--variant=minbase", "--include=" + ",".join(packages), "bookworm", root]
                           + mirror[:1], capture_output=True, text=True, timeout=900)
        if p.returncode:
            raise unittest.SkipTest("debootstrap could not make a base image: " + p.stdout[-300:])
        tar = subprocess.Popen(["tar", "-C", root, "-c", "."], stdout=subprocess.PIPE)
        subprocess.run(["docker", "import", "-", "cauce-base:test"], stdin=tar.stdout, env=cls.engine.env, check=True,
                       capture_output=True, timeout=300)
        tar.stdout.close()
        tar.wait()
        shutil.rmtree(root)

    def wait_ready(self):
        """`docker events` tells of each health change; nothing is polled."""
        p = subprocess.Popen(["docker", "events", "--since", "10m", "--filter", "event=health_status",
                              "--format", "{{.Actor.Attributes.name}} {{.Status}}"], env=self.engine.env,
                             stdout=subprocess.PIPE, text=True)
        timer = threading.Timer(120, p.kill)
        timer.start()
        healthy = set()
        for line in p.stdout:
            if line.strip().endswith("health_status: healthy"):
                healthy.add(line.split()[0])
            if len(healthy) == 10:
                break
        timer.cancel()
        p.kill()
        p.wait()
        p.stdout.close()
        self.assertEqual(len(healthy), 10, self.compose("ps"))

    def test_main_job_in_containers(self):
        self.wait_ready()
        logs = self.compose("exec", "-T", "gateway-1", "cat", "/var/lib/cauce/ready/ready")
        key = json.loads(logs)["public"].split("#")[1]
        rpc = self.compose("port", "gateway-1", "7400").strip().rsplit(":", 1)[1]
        env = dict(os.environ, CAUCE_SERVER=f"cauce://127.0.0.1:{rpc}#{key}", CAUCE_PASSWORD=PASSWORD,
                   CAUCE_STATE_DIR=os.path.join(self.dir, "state"))

        def ctl(*words):
            p = subprocess.run([os.path.join(BIN, "mediactl"), *words, "--json"], env=env, capture_output=True,
                               text=True, timeout=200)
            self.assertEqual(p.returncode, 0, f"{words}: {p.stderr}\n" + self.compose("logs", "--tail=5"))
            return json.loads(p.stdout or "{}")

        ctl("register", "seller")
        film = make_film(os.path.join(self.dir, "film.mp4"), seconds=4, size="640x360")
        r = ctl("upload", film, "--title", "In containers", "--public", "--wait")
        item = (r["uploads"][0] if "uploads" in r else r)["item_id"]
        out = os.path.join(self.dir, "out.mp4")
        ctl("play", item, "--out", out)
        self.assertGreater(os.path.getsize(out), 10000)
        self.assertEqual(self.published(), {"gateway-1"}, "no other process listens publicly")
        self.scale_workers(ctl)

    def scale_workers(self, ctl):
        """Workers are added in the middle of a job, and removed; its output is the one of another job of the film."""
        digests = lambda item: {(o["rendition"], o.get("segment", 0)): o["digest"] for o in ctl("job", "show", item)["outputs"]}
        film = make_film(os.path.join(self.dir, "long.mp4"), seconds=30, size="640x360")
        uploaded = lambda *words: (r := ctl("upload", film, *words)).get("uploads", [r])[0]["item_id"]
        want = digests(uploaded("--title", "Two workers", "--wait"))
        item = uploaded("--title", "More and fewer")
        self.compose("up", "-d", "--no-recreate", "--scale", "worker=2")
        self.until(lambda: any(o["worker"].startswith("scaled-") for o in ctl("job", "show", item).get("outputs", []))
                   or ctl("job", "show", item)["state"] == "done")
        self.compose("up", "-d", "--no-recreate", "--scale", "worker=0")
        self.until(lambda: ctl("job", "show", item)["state"] == "done")
        self.assertEqual(digests(item), want)

    def until(self, holds, seconds=180):
        deadline = time.monotonic() + seconds
        while not holds():
            self.assertLess(time.monotonic(), deadline, "not seen in time")

    def published(self):
        names = subprocess.run(["docker", "ps", "--format", "{{.Names}}|{{.Ports}}"], env=self.engine.env,
                               capture_output=True, text=True, check=True).stdout.splitlines()
        return {n.split("|")[0].split("_")[-2] for n in names if "->" in n and n.startswith(PROJECT)}


if __name__ == "__main__":
    main()
