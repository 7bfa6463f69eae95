"""No token, a wrong token, another user's token: on every HTTP route."""

import urllib.parse

from platform_fixture import PlatformTest, main, make_film


class Access(PlatformTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        for who in ("seller", "other"):
            cls.register(who)
        film = make_film(cls.path("film.mp4"), seconds=3, size="320x240")
        cls.item = cls.upload("seller", film, "--title", "Secret", "--price", "3.00 EUR", "--public", "--wait")["item_id"]
        free = make_film(cls.path("free.mp4"), seconds=2, size="320x240")
        cls.free = cls.upload("seller", free, "--title", "Free", "--public", "--wait")["item_id"]
        cls.tokens = {who: cls.access_token(who) for who in ("seller", "other")}
        cls.play = cls.request(f"/api/v1/items/{cls.item}/play", cls.tokens["seller"],
                               {"profile": {"neverDirect": True}}).json()
        cls.other_play = cls.request(f"/api/v1/items/{cls.free}/play", cls.tokens["other"], {}).json()

    def media_paths(self, token, item):
        names = ("master.m3u8", "manifest.mpd", "poster.jpg", "v240.m3u8", "v240/init.mp4", "v240/0.m4s")
        return [f"/hls/{token}/{item}/{p}" for p in names] + [f"/file/{token}/{item}"]

    def test_media_routes_need_the_items_own_token(self):
        good = self.play["mediaToken"]
        self.assertEqual(self.request(self.play["masterUrl"]).status, 200)
        broken = good[:-3] + ("abc" if good[-3:] != "abc" else "xyz")
        foreign = self.other_play["mediaToken"]
        for token in (broken, "x", "v4.public." + "A" * 120, foreign, self.tokens["seller"]):
            for path in self.media_paths(token, self.item):
                self.assertIn(self.request(path).status, (401, 403), path)
        for path in self.media_paths(good, self.free):
            self.assertIn(self.request(path).status, (401, 403), path)

    def test_api_routes_need_an_access_token(self):
        routes = self.request("/api/v1/routes")
        paths = [("GET", "/api/v1/me"), ("GET", "/api/v1/jobs"), ("GET", "/api/v1/orders"), ("GET", "/api/v1/balance"),
                 ("GET", "/api/v1/library"), ("GET", "/api/v1/users"), ("GET", "/api/v1/workers"),
                 ("GET", "/api/v1/backends"), ("GET", "/api/v1/cluster"), ("POST", "/api/v1/quotes"),
                 ("POST", "/api/v1/orders"), ("POST", "/api/v1/credits"), ("POST", "/api/v1/vouchers"),
                 ("POST", f"/api/v1/items/{self.item}/play"), ("POST", f"/api/v1/items/{self.item}/publish"),
                 ("PATCH", f"/api/v1/items/{self.item}"), ("POST", "/api/v1/users/other/roles"),
                 ("POST", "/api/v1/users/other/disabled"), ("POST", "/api/v1/logout"), ("POST", "/api/v1/password")]
        del routes
        for method, path in paths:
            for token in (None, "nonsense", self.play["mediaToken"]):
                r = self.request(path, token, {} if method != "GET" else None, method)
                self.assertEqual(r.status, 401, (method, path, token))
                self.assertEqual(r.headers.get_content_type(), "application/problem+json")

    def test_users_cannot_act_for_others_or_as_admins(self):
        t = self.tokens["other"]
        self.assertEqual(self.request(f"/api/v1/items/{self.item}/play", t, {}).status, 403)
        for method, path, body in [
                ("PATCH", f"/api/v1/items/{self.item}", {"title": "Mine now"}),
                ("POST", f"/api/v1/items/{self.item}/publish", {"published": False}),
                ("GET", "/api/v1/users", None), ("GET", "/api/v1/workers", None), ("GET", "/api/v1/cluster", None),
                ("POST", "/api/v1/credits", {"user": "other", "amount": {"minor": "100", "currency": "EUR"},
                                             "idempotencyKey": "x"}),
                ("POST", "/api/v1/users/other/roles", {"roles": ["admin"]})]:
            self.assertEqual(self.request(path, t, body, method).status, 403, path)
        job = self.ctl_raw("other", "job", "show", self.item)
        self.assertIn(job.returncode, (3, 4))

    def test_free_and_public_items_play_for_any_user(self):
        self.assertEqual(self.request(self.other_play["masterUrl"]).status, 200)

    def test_unknown_paths_and_traversal_are_not_found(self):
        for path in ("/nothing", "/hls/", "/api/v1/nothing", "/item/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd",
                     "/static/..%2f..%2fetc/passwd"):
            self.assertIn(self.request(path).status, (400, 401, 404), path)

    def test_public_pages_carry_security_headers(self):
        for path in ("/", f"/item/{self.item}"):
            r = self.request(path)
            self.assertEqual(r.status, 200)
            self.assertIn("Content-Security-Policy", r.headers)
            self.assertEqual(r.headers["X-Content-Type-Options"], "nosniff")
        for path in ("/livez", "/readyz", "/metrics"):
            self.assertEqual(self.request(path).status, 200)
        url = urllib.parse.urljoin(self.http, "/livez")
        self.assertTrue(url)


if __name__ == "__main__":
    main()
