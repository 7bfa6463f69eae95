"""A platform of its own for a test: compose/launcher on a temporary folder, free ports."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import unittest
import urllib.error
import urllib.parse
import urllib.request

SOURCE = os.environ.get("CAUCE_SOURCE_DIR") or os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BIN = os.environ.get("CAUCE_BIN_DIR") or os.path.join(SOURCE, "build", "dev", "bin")
DATA = os.environ.get("CAUCE_TEST_DATA") or os.path.join(os.path.dirname(SOURCE), "shared")
sys.path.insert(0, os.path.join(SOURCE, "compose", "launcher"))
sys.dont_write_bytecode = True
os.environ["CAUCE_BUILD"] = os.path.dirname(BIN)
os.environ["CAUCE_HTTP"] = "127.0.0.1:0"
os.environ["CAUCE_RPC"] = "127.0.0.1:0"
import local  # noqa: E402  (needs the path and environment above)

PASSWORD = "correct horse battery"


def media(name):
    """A file of the shared test media; skips the test when it is not there."""
    path = os.path.join(DATA, "media", name)
    if not os.path.exists(path):
        raise unittest.SkipTest(f"no {path}: set CAUCE_TEST_DATA")
    return path


def make_film(path, seconds=6, size="640x360", extra=()):
    """A film with sound, made by ffmpeg's generators."""
    subprocess.run(["ffmpeg", "-y", "-v", "error", "-f", "lavfi", "-i", f"testsrc2=size={size}:rate=25:duration={seconds}",
                    "-f", "lavfi", "-i", f"sine=frequency=440:sample_rate=48000:duration={seconds}",
                    "-c:v", "libx264", "-preset", "ultrafast", "-g", "50", "-pix_fmt", "yuv420p", "-c:a", "aac",
                    "-shortest", *extra, path], check=True)
    return path


def make_song(path, seconds=6):
    subprocess.run(["ffmpeg", "-y", "-v", "error", "-f", "lavfi", "-i",
                    f"sine=frequency=330:sample_rate=44100:duration={seconds}", "-c:a", "flac", path], check=True)
    return path


class Reply:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    def json(self):
        return json.loads(self.body)


class PlatformTest(unittest.TestCase):
    """setUpClass starts a platform; tests talk to it with mediactl and HTTP as a user would."""

    env = {}  # extra environment of the platform's processes

    @classmethod
    def setUpClass(cls):
        cls.dir = tempfile.TemporaryDirectory(prefix="cauce-it-")
        os.chmod(cls.dir.name, 0o711)
        os.environ.update(cls.env)
        cls.plat = local.Platform(home=os.path.join(cls.dir.name, "home"))
        cls.addClassCleanup(cls.dir.cleanup)
        cls.addClassCleanup(cls.plat.down)
        r = cls.plat.up()
        cls.server, cls.http = r["server"], r["http"]

    @classmethod
    def path(cls, name):
        return os.path.join(cls.dir.name, name)

    @classmethod
    def ctl_env(cls, who, password=PASSWORD):
        return dict(os.environ, CAUCE_SERVER=cls.server, CAUCE_STATE_DIR=cls.path("state-" + who),
                    CAUCE_PASSWORD=password)

    @classmethod
    def ctl_raw(cls, who, *words, timeout=120, password=PASSWORD):
        return subprocess.run([os.path.join(BIN, "mediactl"), *words], env=cls.ctl_env(who, password),
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout)

    @classmethod
    def ctl(cls, who, *words, timeout=120, password=PASSWORD):
        p = cls.ctl_raw(who, *words, "--json", timeout=timeout, password=password)
        if p.returncode:
            raise AssertionError(f"mediactl {' '.join(words)} ended with {p.returncode}: {p.stderr[-800:]}")
        return json.loads(p.stdout) if p.stdout.strip() else {}

    @classmethod
    def register(cls, who):
        return cls.ctl(who, "register", who)

    @classmethod
    def login_admin(cls):
        with open(os.path.join(cls.plat.home, "admin-password")) as f:
            return cls.ctl("admin", "login", "admin", password=f.read().strip())

    @classmethod
    def request(cls, url, token=None, body=None, method=None, headers=None, timeout=60):
        req = urllib.request.Request(urllib.parse.urljoin(cls.http, url), method=method, headers=headers or {})
        if token:
            req.add_header("Authorization", "Bearer " + token)
        if body is not None:
            req.data = body if isinstance(body, bytes) else json.dumps(body).encode()
            req.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(req, timeout=timeout) as r:
                return Reply(r.status, r.headers, r.read())
        except urllib.error.HTTPError as e:
            return Reply(e.code, e.headers, e.read())

    @classmethod
    def access_token(cls, who, password=PASSWORD):
        r = cls.request("/api/v1/login", body={"name": who, "password": password})
        assert r.status == 200, r.body
        return r.json()["accessToken"]

    @classmethod
    def upload(cls, who, path, *words, timeout=300):
        r = cls.ctl(who, "upload", path, *words, timeout=timeout)
        return r["uploads"][0] if "uploads" in r else r

    @classmethod
    def events(cls, who, topic="transcode", start=1):
        """A running `events tail`; iterate its lines with until()."""
        p = subprocess.Popen([os.path.join(BIN, "mediactl"), "events", "tail", "--topic", topic, "--from", str(start),
                              "--json"], env=cls.ctl_env(who), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        cls.addClassCleanup(_end, p)
        return p

    @staticmethod
    def until(tail, match, timeout=180):
        """Events as they come until match(event) is true; fails when the time is over."""
        timer = threading.Timer(timeout, tail.kill)
        timer.start()
        seen = []
        try:
            for line in tail.stdout:
                e = json.loads(line)
                if isinstance(e.get("data"), str):
                    e["data"] = json.loads(e["data"] or "{}")
                seen.append(e)
                if match(e):
                    return e
        finally:
            timer.cancel()
        raise AssertionError(f"no such event within {timeout} s; saw {[s['kind'] for s in seen][-20:]}")


def _end(p):
    p.kill()
    p.wait()
    p.stdout.close()


def ffprobe(path, *words):
    return json.loads(subprocess.run(["ffprobe", "-v", "error", *words, "-of", "json", path], check=True,
                                     capture_output=True, text=True).stdout)


def main():
    """unittest.main with CTest's convention: 77 when everything was skipped."""
    program = unittest.main(module="__main__", exit=False, verbosity=2)
    r = program.result
    if not r.wasSuccessful():
        sys.exit(1)
    sys.exit(77 if r.testsRun and len(r.skipped) == r.testsRun else 0)
