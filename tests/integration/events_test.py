"""Events: logins that end are heard of everywhere; what is appended is seen once and in order, whatever fails."""

import os
import subprocess
import time

from platform_fixture import BIN, PASSWORD, PlatformTest, main

SOON_S = 30  # a second or so, on a machine that has much else to do


class Revocation(PlatformTest):
    """An access token that was good is refused by every service soon after its login has ended."""

    def expect_refused_soon(self, token, path="/api/v1/jobs"):
        until = time.monotonic() + SOON_S
        while (r := self.request(path, token)).status == 200 and time.monotonic() < until:
            pass
        self.assertEqual(r.status, 401, r.body)

    def expect_good(self, *tokens):
        for t in tokens:
            self.assertEqual(self.request("/api/v1/jobs", t).status, 200)

    def admin_token(self):
        with open(os.path.join(self.plat.home, "admin-password")) as f:
            return self.access_token("admin", f.read().strip())

    def post(self, path, token, body):
        r = self.request(path, token, body)
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


if __name__ == "__main__":
    main()
