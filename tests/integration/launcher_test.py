"""compose/local itself: up twice, status, down leaves nothing, long paths, any order."""

import os
import tempfile
import time
import unittest

from platform_fixture import local, main


def processes_of(home):
    """Command lines of live processes that name the folder."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as f:
                words = f.read().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if home in words and int(pid) != os.getpid():
            found.append(words)
    return found


class Launcher(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.TemporaryDirectory(prefix="cauce-launch-")
        os.chmod(self.dir.name, 0o711)
        self.addCleanup(self.dir.cleanup)

    def platform(self, home):
        p = local.Platform(home=home)
        self.addCleanup(p.reset)
        return p

    def test_up_is_repeatable_and_down_leaves_nothing(self):
        home = os.path.join(self.dir.name, "home")
        p = self.platform(home)
        first = p.up()
        self.assertTrue(all(r["up"] for r in p.status()))
        self.assertEqual(p.up()["http"], first["http"], "up on a running platform changes nothing")
        self.assertEqual(p.down(), [], "everything stopped by itself")
        self.assertEqual(processes_of(home), [])
        began = time.monotonic()
        p.up()
        self.assertLess(time.monotonic() - began, 3 * 3)
        p.down()
        self.assertEqual(processes_of(home), [])

    def test_a_long_path_uses_a_runtime_directory(self):
        home = os.path.join(self.dir.name, "a" * 60, "b" * 60)
        p = self.platform(home)
        self.assertFalse(p.run.startswith(home))
        p.up()
        self.assertTrue(all(r["up"] for r in p.status()))

    def test_any_start_order_works(self):
        home = os.path.join(self.dir.name, "order")
        original = list(local.NODES)
        local.NODES.reverse()
        try:
            p = self.platform(home)
            p.up()
            self.assertTrue(all(r["up"] for r in p.status()))
        finally:
            local.NODES[:] = original


if __name__ == "__main__":
    main()
