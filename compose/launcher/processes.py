"""Starting, watching and ending processes that outlive the launcher."""

import ctypes
import json
import os
import select
import signal
import subprocess
import time


def start_time(pid):
    """Kernel start time of a process, which with the pid names it for good; None when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            fields = f.read().rsplit(b")", 1)[1].split()
    except OSError:
        return None
    return None if fields[0] == b"Z" else int(fields[19])


class Table:
    """The processes that were started: name -> pid and start time, kept in a file."""

    def __init__(self, path):
        self.path = path
        try:
            with open(path) as f:
                self.rows = json.load(f)
        except (OSError, ValueError):
            self.rows = {}
        self.children = {}  # those that this very process started

    def save(self):
        tmp = self.path + ".tmp"
        with open(tmp, "w") as f:
            json.dump(self.rows, f)
        os.replace(tmp, self.path)

    def is_up(self, name):
        row = self.rows.get(name)
        return bool(row) and start_time(row["pid"]) == row["start"]

    def pid(self, name):
        return self.rows[name]["pid"] if self.is_up(name) else None

    def spawn(self, name, argv, log_path, env=None):
        with open(log_path, "ab") as log:
            p = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env,
                                 start_new_session=True)
        self.rows[name] = {"pid": p.pid, "start": start_time(p.pid)}
        self.children[name] = p

    def stop(self, names, grace_s):
        """SIGTERM all at once, then SIGKILL whoever is left after the grace time. Returns those killed."""
        fds = {}
        for name in names:
            if self.is_up(name):
                pid = self.rows[name]["pid"]
                try:
                    fds[os.pidfd_open(pid)] = (name, pid)
                    os.kill(pid, signal.SIGTERM)
                except ProcessLookupError:
                    pass
        left = _wait_ended(fds, time.monotonic() + grace_s)
        for fd in left:
            try:
                os.kill(fds[fd][1], signal.SIGKILL)
            except ProcessLookupError:
                pass
        _wait_ended({fd: fds[fd] for fd in left}, time.monotonic() + 5)
        killed = [fds[fd][0] for fd in left]
        for fd in fds:
            os.close(fd)
        for name in names:
            self.rows.pop(name, None)
            child = self.children.pop(name, None)
            if child:
                child.wait()
        return killed


def _wait_ended(fds, deadline):
    """Those of the pidfds whose processes have not ended by the deadline."""
    left = set(fds)
    poll = select.poll()
    for fd in left:
        poll.register(fd, select.POLLIN)
    while left and time.monotonic() < deadline:
        for fd, _ in poll.poll(max(1, int((deadline - time.monotonic()) * 1000))):
            poll.unregister(fd)
            left.discard(fd)
    return left


class Directory:
    """Waits for files to be moved into a directory (inotify), so that nobody polls."""

    IN_MOVED_TO, IN_CLOSE_WRITE = 0x80, 0x8

    def __init__(self, path):
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.path = path
        self.fd = self.libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self.fd < 0 or self.libc.inotify_add_watch(self.fd, os.fsencode(path),
                                                      self.IN_MOVED_TO | self.IN_CLOSE_WRITE) < 0:
            raise OSError(ctypes.get_errno(), "inotify: " + path)

    def wait_for(self, names, deadline, alive):
        """Until all the files are there. alive(): names of processes that died; any ends the wait.
        Returns (missing names, dead processes)."""
        names = set(names)
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        while True:
            missing = {n for n in names if not os.path.exists(os.path.join(self.path, n))}
            dead = alive()
            left = deadline - time.monotonic()
            if not missing or dead or left <= 0:
                return missing, dead
            if poll.poll(min(250, max(1, int(left * 1000)))):  # wakes to look for deaths as well
                try:
                    os.read(self.fd, 65536)
                except BlockingIOError:
                    pass

    def close(self):
        os.close(self.fd)
