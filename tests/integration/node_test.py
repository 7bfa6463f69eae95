"""What the processes say of themselves, asked as an operator asks: mediactl node, mediactl rpc, HTTP's edge."""

import json
import os
import signal
import subprocess
import threading

from platform_fixture import BIN, PlatformTest, main

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


class Node(PlatformTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.login_admin()
        cls.register("ann")
        cls.nodes = {n["nodeId"]: n for n in cls.ctl("admin", "node", "ls")["nodes"]}

    def of_role(self, role):
        return next(i for i, n in self.nodes.items() if n["role"] == role)

    def lines(self, p, match, timeout=120):
        """Lines of a running command, parsed, until match(line) is true."""
        timer = threading.Timer(timeout, p.kill)
        timer.start()
        seen = []
        try:
            for line in p.stdout:
                seen.append(json.loads(line))
                if match(seen[-1]):
                    return seen[-1]
        finally:
            timer.cancel()
        self.fail(f"no such line; saw {seen[-10:]}; {p.stderr.read()[-800:]}")

    def start(self, who, *words):
        p = subprocess.Popen([os.path.join(BIN, "mediactl"), *words, "--json"], env=self.ctl_env(who), text=True,
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

        def end():
            p.kill()
            p.communicate()
        self.addCleanup(end)
        return p

    def refused(self, code, who, *words, stdin=None):
        p = subprocess.run([os.path.join(BIN, "mediactl"), *words], env=self.ctl_env(who), input=stdin or "",
                           capture_output=True, text=True, timeout=120)
        self.assertEqual(p.returncode, code, (words, p.stdout, p.stderr))
        return p.stderr

    def test_every_node_is_listed_with_state_version_and_uptime(self):
        self.assertEqual({n["role"] for n in self.nodes.values()},
                         {"gateway", "session", "orchestrator", "store", "origin", "transcode"})
        for n in self.nodes.values():
            self.assertEqual(n["status"], "SERVING", n)
            self.assertTrue(n["info"]["version"] and int(n["info"]["uptimeMs"]) > 0, n)
        self.assertIn("VERSION", self.ctl_raw("admin", "node", "ls").stdout)

    def test_each_node_tells_its_channels_calls_and_methods(self):
        for node in self.nodes:
            self.assertEqual(self.ctl("admin", "node", "info", node)["nodeId"], node)
            channels = self.ctl("admin", "node", "channels", node)
            self.assertEqual(channels["nodeId"], node)
            self.assertTrue(any(c["peerRole"] == "gateway" for c in channels["connections"]), node)
            calls = self.ctl("admin", "node", "calls", node)
            self.assertIn("cauce.node.v1.Node.Calls", [c["method"] for c in calls["calls"]])
            methods = {m["name"]: m for m in self.ctl("admin", "node", "methods", node)["methods"]}
            self.assertGreater(int(methods["cauce.node.v1.Node.Info"]["calls"]), 0)
        gateway = self.of_role("gateway")
        to_store = [c for c in self.ctl("admin", "node", "channels", gateway)["channels"] if c["peerRole"] == "store"]
        self.assertIn("CHANNEL_READY", {c["state"] for c in to_store})
        watched = self.start("admin", "node", "calls", gateway, "--watch")
        for _ in range(2):
            self.lines(watched, lambda r: r["nodeId"] == gateway)

    def test_unknown_nodes_and_strangers(self):
        said = self.refused(3, "admin", "node", "info", "nowhere")
        for node in self.nodes:
            self.assertIn(node, said)
        self.refused(3, "admin", "node", "health", "nowhere")
        said = self.refused(4, "ann", "node", "info", self.of_role("store"))
        self.assertNotIn(self.of_role("session"), said)
        self.refused(4, "ann", "node", "channels")
        self.refused(4, "nobody", "rpc", "call", "Node.Info")

    def test_health_of_one_node_is_asked_and_watched(self):
        node = self.of_role("transcode")
        one = self.ctl("admin", "node", "health", node)
        self.assertEqual([n["nodeId"] for n in one["nodes"]], [node])
        watch = self.start("admin", "node", "health", node, "--watch")
        self.assertEqual(self.lines(watch, lambda r: True)["status"], "SERVING")
        self.assertEqual(self.plat.table.stop([node], 15), [])
        self.assertEqual(self.lines(watch, lambda r: r["status"] != "SERVING")["reason"], "stopping")
        self.lines(watch, lambda r: r["status"] == "UNREACHABLE")
        self.refused(6, "admin", "node", "health", node)
        self.plat.start_node(node)
        self.lines(watch, lambda r: r["status"] == "SERVING")

    def test_health_tells_that_the_database_is_away(self):
        node = self.of_role("store")
        watch = self.start("admin", "node", "health", node, "--watch")
        self.lines(watch, lambda r: r["status"] == "SERVING")
        self.plat.pg_stop()
        try:
            self.assertTrue(self.lines(watch, lambda r: r["status"] == "NOT_SERVING")["reason"])
        finally:
            self.plat.pg_start()
        self.lines(watch, lambda r: r["status"] == "SERVING")

    def test_reflection_lists_and_describes_with_comments(self):
        services = {s["name"]: s for s in self.ctl("ann", "rpc", "ls")["services"]}
        self.assertIn("cauce.store.v1.Catalog", services)
        self.assertTrue(services["cauce.store.v1.Catalog"]["methods"][0]["forwarded"])
        store = {s["name"] for s in self.ctl("admin", "rpc", "ls", "--node", self.of_role("store"))["services"]}
        self.assertIn("cauce.store.v1.Shop", store)
        self.assertNotIn("cauce.session.v1.Session", store)
        text = self.ctl("ann", "rpc", "describe", "Health.Watch")["text"]
        self.assertIn("// The state at once, then again whenever it changes", text)
        self.assertIn("message CheckReply {", text)
        shown = self.ctl_raw("nobody", "rpc", "describe", "Health")
        self.assertEqual(shown.returncode, 0, shown.stderr)
        self.assertIn("rpc Watch", shown.stdout)
        self.assertIn("built-in", shown.stderr)
        self.refused(3, "ann", "rpc", "describe", "Nothing.AtAll")

    def test_rpc_call_takes_json_from_everywhere(self):
        store = self.of_role("store")
        self.assertEqual(self.ctl("admin", "rpc", "call", "Node.Info", "--route", store)["nodeId"], store)
        request = self.path("request.json")
        with open(request, "w") as f:
            json.dump({"prefix": "cauce.node.v1.Node.", "unused": True}, f)
        from_file = self.ctl("admin", "rpc", "call", "Node.Methods", "-d", "@" + request, "--metadata", "a.b=c=d")
        self.assertEqual({m["name"].rsplit(".", 1)[0] for m in from_file["methods"]}, {"cauce.node.v1.Node"})
        piped = subprocess.run([os.path.join(BIN, "mediactl"), "rpc", "call", "Catalog.List", "-d", "-", "--timeout",
                                "20s"], env=self.ctl_env("ann"), input='{"page": {"size": 3}}', capture_output=True,
                               text=True, timeout=120)
        self.assertEqual(piped.returncode, 0, piped.stderr)
        json.loads(piped.stdout)
        stream = self.start("admin", "rpc", "call", "Health.Watch", "--route", store)
        self.assertEqual(self.lines(stream, lambda r: True)["status"], "SERVING")
        stream.send_signal(signal.SIGINT)
        stream.communicate()
        self.assertEqual(stream.returncode, 130)

    def test_rpc_call_writes_streams_a_line_a_message(self):
        origin = self.of_role("origin")
        words = ("rpc", "call", "cauce.origin.v1.Upload.Leaves", "--route", origin, "-d", "-")
        # The origin answers what was written: that upload does not exist.
        said = self.refused(3, "ann", *words, stdin='{"uploadId": "0192f3a0-0000-7000-8000-000000000001"}\n\n{}\n')
        self.assertIn("NOT_FOUND", said)
        self.assertIn("JSON", self.refused(2, "ann", *words, stdin='{"uploadId": \n'))
        scrub = self.ctl_raw("admin", "rpc", "call", "Object.Scrub", "--route", origin, "--json")
        self.assertEqual(scrub.returncode, 0, scrub.stderr)
        for line in scrub.stdout.splitlines():
            json.loads(line)

    def test_rpc_call_says_why_it_failed(self):
        said = self.refused(3, "ann", "rpc", "call", "Catalog.Get",
                            "-d", '{"itemId": "0192f3a0-0000-7000-8000-000000000001"}')
        self.assertIn("NOT_FOUND", said)
        failed = json.loads(self.refused(3, "ann", "rpc", "call", "Catalog.Get", "--json", "-d",
                                         '{"itemId": "0192f3a0-0000-7000-8000-000000000001"}'))
        self.assertEqual((failed["status"], failed["code"]), ("NOT_FOUND", 5))
        self.refused(2, "ann", "rpc", "call", "Catalog.Get", "-d", "{")
        self.refused(2, "ann", "rpc", "call", "Catalog.Get", "-d", '{"nonsense": 1}')
        self.refused(2, "ann", "rpc", "call", "Catalog.Get", "--metadata", "novalue")
        self.refused(4, "ann", "rpc", "call", "Node.Info")

    def test_http_takes_traces_over_and_answers_with_them(self):
        parent = "00f067aa0ba902b7"
        r = self.request("/api/v1/items", headers={"traceparent": f"00-{TRACE}-{parent}-01"})
        self.assertTrue(r.headers["traceresponse"].startswith(f"00-{TRACE}-"), r.headers)
        self.assertNotIn(parent, r.headers["traceresponse"])
        r = self.request("/api/v1/items", headers={"traceparent": f"00-{TRACE}-{parent}-01-more"})
        self.assertNotIn(TRACE, r.headers["traceresponse"])
        r = self.request("/api/v1/items/0192f3a0-0000-7000-8000-000000000001")
        self.assertEqual((r.status, r.json()["code"]), (404, "NOT_FOUND"))
        self.assertIn("traceresponse", r.headers)


if __name__ == "__main__":
    main()
