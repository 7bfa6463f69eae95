"""Events: logins that end are heard of everywhere; what is appended is seen once and in order, whatever fails."""

import json
import os
import signal
import subprocess
import threading
import time

from platform_fixture import BIN, PASSWORD, PlatformTest, main, make_film

SOON_S = 60  # a second or so, on a machine that has much else to do


class Events(PlatformTest):
    def kill(self, node):
        os.kill(self.plat.table.pid(node), signal.SIGKILL)
        self.plat.table.stop([node], 5)


class Revocation(Events):
    """An access token that was good is refused by every service soon after its login has ended."""

    def ask(self, path, token, body=None):
        """The answer of a service that may have to be reconnected first."""
        until = time.monotonic() + SOON_S
        while (r := self.request(path, token, body)).status == 503 and time.monotonic() < until:
            pass
        return r

    def expect_refused_soon(self, token):
        until = time.monotonic() + SOON_S
        while (r := self.ask("/api/v1/jobs", token)).status == 200 and time.monotonic() < until:
            pass
        self.assertEqual(r.status, 401, r.body)

    def expect_good(self, *tokens):
        for t in tokens:
            self.assertEqual(self.ask("/api/v1/jobs", t).status, 200)

    def admin_token(self):
        with open(os.path.join(self.plat.home, "admin-password")) as f:
            return self.access_token("admin", f.read().strip())

    def post(self, path, token, body):
        r = self.ask(path, token, body)
        self.assertEqual(r.status, 200, r.body)
        return r

    def test_logout_ends_one_login_and_everywhere_all(self):
        self.register("ann")
        phone, laptop, tablet = (self.access_token("ann") for _ in range(3))
        self.expect_good(phone, laptop, tablet)
        self.post("/api/v1/logout", phone, {})
        self.expect_refused_soon(phone)
        self.expect_good(laptop, tablet)
        self.post("/api/v1/logout", laptop, {"everywhere": True})
        self.expect_refused_soon(tablet)
        self.expect_refused_soon(laptop)
        self.expect_good(self.access_token("ann"))

    def test_after_a_death_of_session_and_of_a_role_that_forgot(self):
        self.register("eve")
        phone, laptop = (self.access_token("eve") for _ in range(2))
        self.expect_good(phone, laptop)
        self.kill("session-1")
        self.plat.start_node("session-1")
        self.post("/api/v1/logout", phone, {})
        self.expect_refused_soon(phone)  # another publisher, with other keys
        self.kill("gateway-1")
        self.kill("orchestrator-1")
        for node in ("orchestrator-1", "gateway-1"):
            self.plat.start_node(node)
        now = self.plat.where()
        Revocation.server, Revocation.http = now["server"], now["http"]
        self.expect_refused_soon(phone)  # they read what was told before they began
        self.expect_good(laptop)

    def test_a_new_password_ends_open_streams(self):
        self.register("ben")
        tail = subprocess.Popen([os.path.join(BIN, "mediactl"), "events", "tail", "--topic", "transcode", "--json"],
                                env=self.ctl_env("ben"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addCleanup(lambda: (tail.kill(), tail.wait(), tail.stdout.close(), tail.stderr.close()))
        before = self.access_token("ben")
        self.expect_good(before)
        r = self.post("/api/v1/password", before, {"oldPassword": PASSWORD, "newPassword": "another horse battery"})
        self.expect_good(r.json()["accessToken"])  # the answer's own login goes on
        self.expect_refused_soon(before)
        tail.wait(SOON_S)
        self.assertNotEqual(tail.returncode, 0)
        self.assertIn("login", tail.stderr.read())

    def test_a_user_who_is_disabled_or_loses_a_role(self):
        admin = self.admin_token()
        for who in ("cleo", "dora"):
            self.register(who)
        cleo, dora = self.access_token("cleo"), self.access_token("dora")
        self.expect_good(cleo, dora)
        self.post("/api/v1/users/cleo/disabled", admin, {"disabled": True})
        self.expect_refused_soon(cleo)
        self.post("/api/v1/users/dora/roles", admin, {"roles": ["user"]})
        self.expect_refused_soon(dora)
        self.assertEqual(self.request("/api/v1/jobs", self.access_token("dora")).status, 403)  # good, for less


class Tail(Events):
    """A tail sees every event of its topics once and in order: the table says which there are."""

    TOPICS = ("upload", "transcode")

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.register("seller")
        cls.login_admin()

    def table(self, after):
        """(topic, seq, kind) of all events beyond those positions, in order."""
        out = subprocess.run([self.plat.pg_bin("psql"), "-h", self.plat.pg_run, "-U", "cauce", "-d", "cauce", "-Atc",
                              "SELECT topic, seq, kind FROM orchestrator.event ORDER BY topic, seq"],
                             check=True, capture_output=True, text=True).stdout
        rows = [(t, int(n), k) for t, n, k in (line.split("|") for line in out.splitlines())]
        return [r for r in rows if r[0] in self.TOPICS and r[1] > after.get(r[0], 0)]

    def tail(self, *words):
        p = subprocess.Popen([os.path.join(BIN, "mediactl"), "events", "tail", *self.TOPICS, "--json", *words],
                             env=self.ctl_env("admin"), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.addCleanup(lambda: (p.kill(), p.wait(), p.stdout.close()))
        return p

    def take(self, tail, want, timeout=120):
        """As many events as there should be, and just those; each topic's in the order in which they came."""
        timer = threading.Timer(timeout, tail.kill)
        timer.start()
        seen = []
        while len(seen) < len(want) and (line := tail.stdout.readline()):
            e = json.loads(line)
            seen.append((e["topic"], int(e["seq"]), e["kind"]))
        timer.cancel()
        self.assertEqual([e for t in sorted(self.TOPICS) for e in seen if e[0] == t], want)

    def make(self, title):
        """An item, from its upload to its last rendition, while the orchestrator and session are killed."""
        film = make_film(self.path(title + ".mp4"), seconds=4, size="320x240")
        progress = self.events("seller", start=max(n for _, n, _ in [("", 0, ""), *self.table({"upload": 1 << 62})]) + 1)
        item = self.upload("seller", film, "--title", title)["item_id"]
        self.until(progress, lambda e: e["subject"] == item and e["kind"] in ("item.planned", "task.progress"))
        for node in ("orchestrator-1", "session-1"):
            self.kill(node)
            self.plat.start_node(node)
        self.until(progress, lambda e: e["subject"] == item and e["kind"] in ("job.done", "job.failed"))

    def settle(self, tail, name, at):
        """Takes all beyond those positions, until the tail has printed and committed what the table has."""
        until = time.monotonic() + 2 * SOON_S
        while True:
            if want := self.table(at):
                self.take(tail, want)
                at = {t: max([at.get(t, 0)] + [n for topic, n, _ in want if topic == t]) for t in self.TOPICS}
            have = {t: int(c["position"]) for t in self.TOPICS for c in self.ctl("admin", "events", "consumers", t)
                    .get("consumers", []) if c["name"] == name}
            if have == at and not self.table(at):
                return at
            if time.monotonic() > until:
                self.assertEqual(have, at)

    def test_each_event_once_whoever_is_killed(self):
        tail = self.tail("--consumer", "keeper", "--from", "0")
        self.make("First")
        kinds = [k for _, _, k in self.table({})]
        self.assertIn("upload.committed", kinds)
        self.assertIn("job.done", kinds)
        at = self.settle(tail, "keeper", {})
        tail.kill()
        tail.wait()

        # What happens while nobody listens is there when it comes back, and nothing twice.
        self.make("Second")
        missed = sum(t == "transcode" for t, _, _ in self.table(at))
        lag = self.ctl_raw("admin", "events", "consumers", "transcode").stdout.split()
        self.assertGreaterEqual(int(lag[lag.index("keeper") + 3]), missed)
        self.settle(self.tail("--consumer", "keeper", "--from", "0"), "keeper", at)

        # Read by pages; forgotten.
        page = [json.loads(line) for line in self.ctl_raw("admin", "events", "read", "transcode", "--from", "2", "--limit",
                                                          "3", "--json").stdout.splitlines()]
        self.assertEqual([int(e["seq"]) for e in page], [2, 3, 4])
        self.ctl("admin", "events", "forget", "upload", "keeper")
        self.assertEqual(self.ctl("admin", "events", "consumers", "upload").get("consumers", []), [])
        self.assertEqual(self.ctl_raw("admin", "events", "forget", "upload", "keeper").returncode, 3)
        self.assertEqual(self.ctl_raw("admin", "events", "read", "swarm").returncode, 0)
        self.assertEqual(self.ctl_raw("seller", "events", "consumers", "upload", "--all").returncode, 4)


if __name__ == "__main__":
    main()
