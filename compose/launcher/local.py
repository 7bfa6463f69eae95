"""compose/local: the whole platform on one machine, as processes. See USAGE."""

import argparse
import configparser
import hashlib
import json
import os
import pwd
import re
import shutil
import socket
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import processes

SOURCE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
USAGE = """\
up                start everything (builds first); prints where to go
down              stop everything; no process is left
status            what runs; exit status 3 when something does not
logs [NAME] [-f]  logs of one process or all
demo              the main job from end to end: upload, transcode, play, buy, keep
reset             down, then delete the platform's state

State is in $CAUCE_HOME (default: .cauce in the checkout). $CAUCE_HTTP and $CAUCE_RPC choose the public
addresses (default 127.0.0.1:7480 and 127.0.0.1:7400, or a free port when taken). $CAUCE_LINKS=tcp makes
the processes talk over TCP on loopback instead of unix sockets. $CAUCE_LOCAL_WORKER=on lets the orchestrator
start a worker of its own while no other is up."""

# node id, role, kind, the role's own options ({home} and so on are filled in)
NODES = [
    ("session-1", "session", None, ["--admin-password-file", "{home}/admin-password"]),
    ("store-1", "store", None, []),
    ("orchestrator-1", "orchestrator", None, []),
    ("video-1", "origin", "video", ["--kind", "video", "--data", "{home}/objects/video-1"]),
    ("video-2", "origin", "video", ["--kind", "video", "--data", "{home}/objects/video-2"]),
    ("audio-1", "origin", "audio", ["--kind", "audio", "--data", "{home}/objects/audio-1"]),
    ("worker-1", "transcode", None, ["--slots", "1", "--scratch", "{home}/scratch/worker-1"]),
    ("worker-2", "transcode", None, ["--slots", "1", "--scratch", "{home}/scratch/worker-2"]),
    ("gateway-1", "gateway", None, ["--listen-rpc", "tcp://{rpc}", "--listen-http", "{http}"]),
]
LOCAL_WORKER = "transcode-local"  # with $CAUCE_LOCAL_WORKER: who the orchestrator works as while nobody else does
WITH_DATABASE = {"session", "store", "orchestrator"}
READY_S = 30
GRACE_S = 6


class Failure(Exception):
    pass


def say(text):
    print(text, file=sys.stderr, flush=True)


class BuildProgress:
    """Tells how far ninja is, from its lines: on a terminal in one line, else each tenth."""

    def __init__(self):
        self.tenth = 0
        self.live = sys.stderr.isatty()
        self.is_shown = False

    def see(self, line):
        m = re.match(rb"\[(\d+)/(\d+)\]", line)
        done, steps = (int(m[1]), int(m[2])) if m else (0, 0)
        if steps < 10:  # over at once
            return
        if self.live:
            print(f"\rbuilding: {done} of {steps}", end="", file=sys.stderr, flush=True)
            self.is_shown = True
        elif done * 10 // steps > self.tenth:
            self.tenth = done * 10 // steps
            say(f"building: {self.tenth * 10} %")

    def end(self):
        if self.is_shown:
            say("")


class Platform:
    def __init__(self, home=None, build=None):
        self.home = os.path.abspath(home or os.environ.get("CAUCE_HOME")
                                    or os.path.join(SOURCE, ".cauce"))
        self.build_dir = build or os.environ.get("CAUCE_BUILD") or os.path.join(SOURCE, "build", "release")
        self.tag = hashlib.blake2b(self.home.encode(), digest_size=6).hexdigest()
        self.is_root = os.geteuid() == 0
        self.run = self._run_dir()
        self.ready = os.path.join(self.run, "ready")
        self.pg = self._pg_dir()
        self.pg_run = os.path.join(self.run, "pg")
        self.table = processes.Table(os.path.join(self.run, "processes.json"))

    # ---- places ----

    def _run_dir(self):
        here = os.path.join(self.home, "run")
        longest = max(len(os.path.join(here, "pg", ".s.PGSQL.5432.lock")),
                      max(len(os.path.join(here, n[0] + ".sock")) for n in NODES))
        if longest < 107 and self._pg_user_reaches(self.home):
            return here
        if self.is_root:
            return f"/run/cauce-{self.tag}"
        base = os.environ.get("XDG_RUNTIME_DIR")
        if base and os.path.isdir(base) and len(base) < 60:
            return os.path.join(base, f"cauce-{self.tag}")
        return f"/tmp/cauce-{os.getuid()}-{self.tag}"

    def _pg_dir(self):
        if self.is_root and not self._pg_user_reaches(self.home):
            return f"/var/lib/cauce-{self.tag}"
        return os.path.join(self.home, "pg")

    def _pg_user_reaches(self, path):
        """May PostgreSQL's user walk to the (perhaps not yet existing) folder?"""
        if not self.is_root:
            return True
        while not os.path.isdir(path):
            path = os.path.dirname(path)
        try:
            return subprocess.run(["test", "-x", path], user="postgres", group="postgres",
                                  extra_groups=[]).returncode == 0
        except (KeyError, LookupError):
            return True  # no such user: PostgreSQL is not installed; said elsewhere

    def _make_dirs(self):
        for d, mode in [(self.home, 0o711), (self.run, 0o711), (self.ready, 0o700)]:
            os.makedirs(d, exist_ok=True)
            if os.stat(d).st_uid != os.geteuid() or os.path.islink(d):
                raise Failure(f"{d} belongs to somebody else; remove it or choose another CAUCE_HOME")
            os.chmod(d, mode)
        for d in ["log", "objects", "scratch", "clients"]:
            os.makedirs(os.path.join(self.home, d), mode=0o700, exist_ok=True)

    def bin(self, name):
        return os.path.join(self.build_dir, "bin", name)

    # ---- build ----

    def build(self):
        if os.environ.get("CAUCE_BUILD"):
            return
        log = os.path.join(self.home, "log", "build.log")
        with open(log, "wb") as f:
            steps = []
            if not os.path.exists(os.path.join(self.build_dir, "build.ninja")):
                steps.append(["cmake", "--preset", "release"])
            steps.append(["cmake", "--build", self.build_dir, "--target", "platform"])
            for step in steps:
                if self._build_step(step, f):
                    with open(log, errors="replace") as g:
                        say("".join(g.readlines()[-30:]))
                    raise Failure(f"the build failed; all of it is in {log}")

    @staticmethod
    def _build_step(step, log):
        progress = BuildProgress()
        with subprocess.Popen(step, cwd=SOURCE, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT) as p:
            for line in p.stdout:
                log.write(line)
                progress.see(line)
        progress.end()
        log.flush()
        return p.returncode

    # ---- PostgreSQL ----

    def pg_bin(self, name):
        for d in sorted(self._pg_versions(), reverse=True):
            path = f"/usr/lib/postgresql/{d}/bin/{name}"
            if os.path.exists(path):
                return path
        raise Failure("PostgreSQL is not installed: apt-get install postgresql-15")

    @staticmethod
    def _pg_versions():
        try:
            return [d for d in os.listdir("/usr/lib/postgresql") if d.isdigit() and int(d) >= 15]
        except OSError:
            return []

    def _as_pg(self):
        return {"user": "postgres", "group": "postgres", "extra_groups": []} if self.is_root else {}

    def conninfo(self):
        return f"host={self.pg_run} user=cauce dbname=cauce"

    def pg_start(self):
        os.makedirs(self.pg_run, mode=0o700, exist_ok=True)
        os.makedirs(self.pg, mode=0o700, exist_ok=True)
        if self.is_root:
            u = pwd.getpwnam("postgres")
            os.chown(self.pg_run, u.pw_uid, u.pw_gid)
            os.chown(self.pg, u.pw_uid, u.pw_gid)
        if not os.path.exists(os.path.join(self.pg, "PG_VERSION")):
            self._run([self.pg_bin("initdb"), "-D", self.pg, "-U", "cauce", "-A", "peer",
                       "--auth-local=trust", "--data-checksums", "-E", "UTF8", "--locale=C.UTF-8"],
                      "PostgreSQL could not make its data directory", **self._as_pg())
            with open(os.path.join(self.pg, "postgresql.auto.conf"), "a") as f:
                f.write("listen_addresses = ''\nunix_socket_permissions = 0700\nmax_connections = 200\n"
                        "log_min_messages = warning\n")
        if not self.pg_is_up():
            pidfile = os.path.join(self.pg, "postmaster.pid")
            if os.path.exists(pidfile) and not os.path.exists(f"/proc/{open(pidfile).readline().strip()}"):
                os.unlink(pidfile)
            self._run([self.pg_bin("pg_ctl"), "-D", self.pg, "-w", "-t", "30", "-s",
                       "-l", os.path.join(self.pg, "server.log"),
                       "-o", f"-c unix_socket_directories={self.pg_run}", "start"],
                      f"PostgreSQL did not start; see {self.pg}/server.log", **self._as_pg())
        have = subprocess.run([self.pg_bin("psql"), "-h", self.pg_run, "-U", "cauce", "-d", "postgres", "-Atc",
                               "select 1 from pg_database where datname = 'cauce'"],
                              capture_output=True, text=True)
        if have.stdout.strip() != "1":
            self._run([self.pg_bin("createdb"), "-h", self.pg_run, "-U", "cauce", "cauce"],
                      "the database could not be made")

    def pg_is_up(self):
        return subprocess.run([self.pg_bin("pg_ctl"), "-D", self.pg, "status"], stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL, **self._as_pg()).returncode == 0

    def pg_stop(self):
        if os.path.exists(os.path.join(self.pg, "PG_VERSION")) and self.pg_is_up():
            self._run([self.pg_bin("pg_ctl"), "-D", self.pg, "-w", "-t", "30", "-s", "-m", "fast", "stop"],
                      "PostgreSQL did not stop", **self._as_pg())

    @staticmethod
    def _run(argv, what, **kw):
        p = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                           text=True, cwd="/", errors="replace", **kw)
        if p.returncode:
            raise Failure(f"{what}: {p.stdout.strip()[-1500:]}")
        return p.stdout

    # ---- roles ----

    def _addresses(self):
        """Public addresses and, over TCP, those between processes: chosen once, then kept."""
        path = os.path.join(self.home, "addresses.json")
        try:
            with open(path) as f:
                a = json.load(f)
        except (OSError, ValueError):
            a = {}
        want = {"http": os.environ.get("CAUCE_HTTP"), "rpc": os.environ.get("CAUCE_RPC")}
        for name, default in [("http", "127.0.0.1:7480"), ("rpc", "127.0.0.1:7400")]:
            a[name] = want[name] or a.get(name) or (default if _is_free(default) else _free_address())
        if os.environ.get("CAUCE_LINKS") == "tcp":
            links = a.setdefault("links", {})
            for n in NODES:
                links.setdefault(n[0], _free_address())
        with open(path, "w") as f:
            json.dump(a, f)
        return a

    def up(self):
        began = time.monotonic()
        self._make_dirs()
        first = not os.path.exists(os.path.join(self.home, "keys", "nodes.ini"))
        self.build()
        self.pg_start()
        a = self._addresses()
        self._run([self.bin("cauced"), "migrate", "--database", self.conninfo(),
                   "--migrations", os.path.join(SOURCE, "migrations")], "the database could not be migrated")
        argv = [self.bin("cauced"), "keys", "--out", os.path.join(self.home, "keys")]
        for node, role, kind, _ in NODES:
            link = a.get("links", {}).get(node)
            url = f"tcp://{link}" if link else f"ipc://{self.run}/{node}.sock"
            argv += ["--node", f"{node}:{role}{':' + kind if kind else ''}@{url}"]
        if os.environ.get("CAUCE_LOCAL_WORKER"):
            argv += ["--node", f"{LOCAL_WORKER}:transcode@ipc://{self.run}/{LOCAL_WORKER}.sock"]
        self._run(argv, "the keys could not be made")

        watch = processes.Directory(self.ready)
        started = []
        for node, role, kind, options in NODES:
            if not self.table.is_up(node):
                self._start(node, role, options, a)
                started.append(node)
        self.table.save()
        missing, dead = watch.wait_for([n[0] for n in NODES], time.monotonic() + READY_S,
                                       lambda: [n for n in started if not self.table.is_up(n)])
        watch.close()
        if dead or missing:
            names = sorted(dead or missing)
            for n in names:
                say(f"--- last lines of {self.log(n)}")
                say(self._tail(n, 5))
            raise Failure(f"{', '.join(names)} {'ended at once' if dead else f'not ready within {READY_S} s'}; "
                          "compose/local logs NAME shows more, compose/local down cleans up")
        return {"seconds": time.monotonic() - began, "first": first, **self.where()}

    def _start(self, node, role, options, a):
        ready = os.path.join(self.ready, node)
        if os.path.exists(ready):
            os.unlink(ready)
        fill = {"home": self.home, **a}
        argv = [self.bin("cauced"), role, "--node", node, "--keys", os.path.join(self.home, "keys"),
                "--ready-file", ready]
        if role in WITH_DATABASE:
            argv += ["--database", self.conninfo(), "--migrations", os.path.join(SOURCE, "migrations")]
        if role == "orchestrator" and os.environ.get("CAUCE_LOCAL_WORKER"):
            argv += ["--local-worker", LOCAL_WORKER]
        for d in ("objects", "scratch"):
            os.makedirs(os.path.join(self.home, d, node), mode=0o700, exist_ok=True) \
                if any(d in o for o in options) else None
        self.table.spawn(node, argv + [o.format(**fill) for o in options], self.log(node))

    def start_node(self, name):
        """Start one node again (after a fault) and wait until it is ready."""
        node, role, _, options = next(n for n in NODES if n[0] == name)
        watch = processes.Directory(self.ready)
        self._start(node, role, options, self._addresses())
        self.table.save()
        missing, dead = watch.wait_for([name], time.monotonic() + READY_S,
                                       lambda: [] if self.table.is_up(name) else [name])
        watch.close()
        if missing or dead:
            raise Failure(f"{name} did not come back: {self._tail(name, 5)}")

    def where(self):
        with open(os.path.join(self.ready, "gateway-1")) as f:
            g = json.load(f)
        return {"http": g.get("http"), "server": self._address(g.get("public"))}

    def _address(self, at_start):
        """The gateway's address with the key it shows now, which may have been rotated since."""
        nodes = configparser.ConfigParser(interpolation=None, strict=False)
        nodes.read(os.path.join(self.home, "keys", "nodes.ini"))
        if not at_start or not nodes.has_section("gateway-1"):
            return at_start
        gateway = nodes["gateway-1"]
        return at_start.split("#")[0] + "#" + gateway.get("next-key", gateway["key"])

    def down(self):
        killed = self.table.stop([n[0] for n in NODES], GRACE_S)
        for n in os.listdir(self.ready) if os.path.isdir(self.ready) else []:
            os.unlink(os.path.join(self.ready, n))
        self.pg_stop()
        if os.path.isdir(self.run):
            self.table.save()
        return killed

    def status(self):
        return [{"name": n[0], "role": n[1], "up": self.table.is_up(n[0]), "pid": self.table.pid(n[0])}
                for n in NODES] + [{"name": "postgresql", "role": "database", "pid": None, "up":
                                    os.path.exists(os.path.join(self.pg, "PG_VERSION")) and self.pg_is_up()}]

    def log(self, node):
        return os.path.join(self.home, "log", node + ".log")

    def _tail(self, node, n):
        try:
            with open(self.log(node), errors="replace") as f:
                return "".join(f.readlines()[-n:])
        except OSError:
            return ""

    def reset(self):
        self.down()
        for d in {self.run, self.pg, self.home}:
            if os.path.lexists(d):
                shutil.rmtree(d)


def _is_free(address):
    host, port = address.rsplit(":", 1)
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((host, int(port)))
        except OSError:
            return False
    return True


def _free_address():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return "127.0.0.1:%d" % s.getsockname()[1]


def print_where(r):
    print(f"Cauce is up ({r['seconds']:.1f} s)\n"
          f"  in a browser     {r['http']}\n"
          f"  for mediactl     mediactl --server '{r['server']}' login NAME\n"
          f"  try it all       compose/local demo")


def main():
    p = argparse.ArgumentParser(prog="compose/local", epilog=USAGE, usage="compose/local COMMAND [options]",
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("command", choices=["up", "down", "status", "logs", "demo", "reset"])
    p.add_argument("name", nargs="?", help="logs: the process")
    p.add_argument("-f", "--follow", action="store_true", help="logs: go on printing")
    p.add_argument("--json", action="store_true", help="one JSON object on standard output")
    p.add_argument("--file", help="demo: the film to use instead of a generated one")
    p.add_argument("--yes", action="store_true", help="reset: do not ask")
    a = p.parse_args()
    if a.name and a.command != "logs":
        p.error(f"{a.command} takes no name")
    plat = Platform()

    if a.command == "up":
        r = plat.up()
        if a.json:
            print(json.dumps(r))
        else:
            print_where(r)
            pw = os.path.join(plat.home, "admin-password")
            if r["first"] and os.path.exists(pw):
                print(f"  administrator    admin, password {open(pw).read().strip()} (shown once; "
                      f"kept in {pw} until you delete it)")
    elif a.command == "down":
        killed = plat.down()
        for n in killed:
            say(f"{n} did not stop within {GRACE_S} s and was killed")
        if a.json:
            print(json.dumps({"killed": killed}))
    elif a.command == "status":
        rows = plat.status()
        print(json.dumps(rows) if a.json else
              "\n".join(f"{r['name']:16} {'up' if r['up'] else 'down':5} {r['pid'] or ''}" for r in rows))
        return 0 if all(r["up"] for r in rows) else 3
    elif a.command == "logs":
        names = [n[0] for n in NODES if a.name in (None, n[0], n[1])] or [a.name]
        files = [plat.log(n) for n in names if os.path.exists(plat.log(n))]
        if not files:
            raise Failure(f"no log of {a.name or 'any process'} in {plat.home}/log; names are "
                          + ", ".join(n[0] for n in NODES) + " and their roles")
        os.execvp("tail", ["tail", "-n", "100"] + (["-F"] if a.follow else []) + files)
    elif a.command == "reset":
        if not a.yes and sys.stdin.isatty() and \
                input(f"Delete everything in {plat.home}? [y/N] ").strip().lower() != "y":
            return 1
        plat.reset()
    elif a.command == "demo":
        import demo
        return demo.main(plat, a.file, a.json)
    return 0


if __name__ == "__main__":
    try:
        code = main()
        sys.stdout.flush()
        sys.exit(code)
    except BrokenPipeError:  # the reader has seen enough; what was asked for is done
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Failure as e:
        say(f"compose/local: {e}")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
