"""docs/protocol.md against a running platform, through a client that was written from it (wire.py)."""

import hashlib
import os
import random
import sys
import threading
import time
import unittest
import wave

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "integration"), os.path.join(HERE, "..", "support")]
import messages  # noqa: E402
import wire  # noqa: E402
from platform_fixture import PASSWORD, PlatformTest, main  # noqa: E402

LEAF = 65536


def digest_of(data):
    """docs/protocol.md "Objects": the leaves' digests and the object's."""
    def b2(person, *parts):
        return hashlib.blake2b(b"".join(parts), digest_size=32, person=person).digest()

    leaves = [b2(b"cauce-object-lf\0", data[at:at + LEAF]) for at in range(0, len(data), LEAF)]
    level = leaves
    while len(level) > 1:
        pairs = [b2(b"cauce-object-nd\0", level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
        level = pairs + level[len(pairs) * 2:]
    top = level[0] if level else bytes(32)
    return leaves, b2(b"cauce-object-rt\0", len(data).to_bytes(8, "big"), top)


class Conformance(PlatformTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        for name in ("session", "node", "event", "orchestrator", "origin", "status"):
            setattr(cls, name, messages.load(name))
        with cls.connect() as c:
            cls.user = c.unary("cauce.session.v1.Session.Register",
                               cls.session.RegisterRequest(name="pia", password=PASSWORD), cls.session.Tokens)

    @classmethod
    def connect(cls):
        return wire.Connection(cls.server)

    def signed_in(self):
        c = self.connect()
        self.addCleanup(c.close)
        c.auth(1, self.user.access_token)
        return c

    def details(self, failed):
        return self.status.Details.FromString(failed.details)

    # ---- calls ----

    def test_login_then_a_call_with_the_token_in_a_slot(self):
        with self.connect() as c:
            t = c.unary("cauce.session.v1.Session.Login", self.session.LoginRequest(name="pia", password=PASSWORD,
                        device="conformance"), self.session.Tokens)
            self.assertEqual(t.user.name, "pia")
            c.auth(3, t.access_token)
            me = c.unary("cauce.session.v1.Session.WhoAmI", self.session.WhoAmIRequest(), self.session.User, slot=3)
            self.assertEqual(me.id, t.user.id)

    def test_a_cleared_slot_gives_no_rights(self):
        c = self.signed_in()
        who = ("cauce.session.v1.Session.WhoAmI", self.session.WhoAmIRequest(), self.session.User)
        self.assertEqual(c.unary(*who, slot=1).name, "pia")
        for slot in (0, 2):
            with self.assertRaises(wire.CallFailed) as e:
                c.unary(*who, slot=slot)
            self.assertEqual(e.exception.code, wire.UNAUTHENTICATED)
        c.auth(1, "")
        with self.assertRaises(wire.CallFailed) as e:
            c.unary(*who, slot=1)
        self.assertEqual(e.exception.code, wire.UNAUTHENTICATED)

    def test_refusals_carry_their_status(self):
        c = self.signed_in()
        with self.assertRaises(wire.CallFailed) as e:
            c.unary("cauce.session.v1.UserAdmin.List", self.session.ListUsersRequest(), self.session.ListUsersReply, slot=1)
        self.assertEqual(e.exception.code, wire.PERMISSION_DENIED)
        with self.assertRaises(wire.CallFailed) as e:
            c.unary("cauce.session.v1.Session.Nothing", self.session.WhoAmIRequest(), self.session.User, slot=1)
        self.assertEqual(e.exception.code, wire.UNIMPLEMENTED)
        self.assertTrue(e.exception.message)

    def test_a_wrong_request_says_what_is_wrong(self):
        with self.connect() as c, self.assertRaises(wire.CallFailed) as e:
            c.unary("cauce.session.v1.Session.Register", self.session.RegisterRequest(name="X Y", password=PASSWORD),
                    self.session.Tokens)
        self.assertEqual(e.exception.code, wire.INVALID_ARGUMENT)
        self.assertIn("name", e.exception.message)
        self.assertFalse(self.details(e.exception).retryable)

    def test_many_calls_at_once_answer_their_own(self):
        c = self.signed_in()
        calls = [c.open("cauce.session.v1.Session.WhoAmI", slot=1, deadline_ms=30000) for _ in range(100)]
        for call in calls:
            call.send(b"", half_close=True)
        for call in reversed(calls):
            self.assertEqual(self.session.User.FromString(call.recv()).name, "pia")
            self.assertIsNone(call.recv())

    # ---- what travels beside messages ----

    def me(self, c, **options):
        return c.unary("cauce.session.v1.Session.WhoAmI", self.session.WhoAmIRequest(), self.session.User, slot=1,
                       **options)

    def test_trace_metadata_and_attempt_do_not_disturb(self):
        c = self.signed_in()
        for options in ({"traceparent": os.urandom(24) + b"\x01"},
                        {"metadata": wire.metadata({"client": "conformance", "build": "1", "empty": ""})},
                        {"attempt": 300},
                        {"traceparent": os.urandom(24) + b"\x00", "attempt": 2, "key": "once", "route": "session",
                         "metadata": wire.metadata({f"k{i}": "v" * 100 for i in range(32)})}):
            self.assertEqual(self.me(c, **options).name, "pia", options)

    def test_flags_that_are_not_known_and_what_follows_are_ignored(self):
        c = self.signed_in()
        self.assertEqual(self.me(c, unknown_flags=0xE0, behind=b"of a later version").name, "pia")
        self.assertEqual(self.me(c, behind=b"\xff" * 40, metadata=wire.metadata({"a": "b"}), attempt=2).name, "pia")

    def test_too_much_metadata_is_refused_with_words(self):
        c = self.signed_in()
        for pairs in ({f"k{i}": "" for i in range(33)}, {"big": "v" * 4097}):
            with self.assertRaises(wire.CallFailed) as e:
                self.me(c, metadata=wire.metadata(pairs))
            self.assertEqual(e.exception.code, wire.RESOURCE_EXHAUSTED)
            self.assertIn("metadata", e.exception.message)
        self.unary_works(c)

    def test_metadata_that_is_malformed_closes_the_connection(self):
        for bad in (wire.metadata({"Upper": "x"}), wire.metadata({"": "x"}), wire.varint(3) + wire.metadata({"a": "b"})[1:],
                    wire.metadata({"k" * 65: ""})):
            c = self.signed_in()
            with self.assertRaises(wire.WireError):
                self.me(c, metadata=bad)

    def test_a_trace_is_in_the_log_of_who_refused(self):
        trace = os.urandom(16)
        with self.connect() as c, self.assertRaises(wire.CallFailed) as e:
            c.unary("cauce.session.v1.Session.Register", self.session.RegisterRequest(name="X Y", password=PASSWORD),
                    self.session.Tokens, traceparent=trace + os.urandom(8) + b"\x01")
        self.assertEqual(e.exception.code, wire.INVALID_ARGUMENT)
        until = time.monotonic() + 30
        while not (found := self.log_lines(trace.hex())) and time.monotonic() < until:
            threading.Event().wait(0.05)
        self.assertTrue([line for line in found if "Session.Register" in line], found)

    def log_lines(self, text):
        lines = []
        for folder, _, names in os.walk(self.path("home")):
            for name in names:
                if name.endswith(".log"):
                    with open(os.path.join(folder, name), errors="replace") as f:
                        lines += [line for line in f if text in line]
        return lines

    def test_details_are_a_message_of_their_own(self):
        c = self.signed_in()
        for method, request in (("cauce.session.v1.UserAdmin.List", self.session.ListUsersRequest()),
                                ("cauce.session.v1.Session.Nothing", self.session.WhoAmIRequest()),
                                ("cauce.session.v1.Session.Login", self.session.LoginRequest(name="pia"))):
            with self.assertRaises(wire.CallFailed) as e:
                c.unary(method, request, self.session.User, slot=1)
            self.assertLessEqual(len(e.exception.details), 8192)
            d = self.details(e.exception)
            self.assertFalse(d.retryable)
            self.assertNotIn(d.reason, ("NOT_STARTED", "OVERLOADED"))  # handlers, or their guards, saw them

    def unary_works(self, c):
        me = c.unary("cauce.session.v1.Session.WhoAmI", self.session.WhoAmIRequest(), self.session.User, slot=1)
        self.assertEqual(me.name, "pia")

    # ---- streams ----

    def open_events(self, c, **options):
        call = c.open("cauce.event.v1.Event.Read", slot=1, route="auth", **options)
        call.send(self.event.ReadRequest(topic="auth", from_seq=1, follow=True).SerializeToString(), half_close=True)
        return call

    def test_a_stream_is_cancelled(self):
        c = self.signed_in()
        call = self.open_events(c)
        self.assertEqual(self.event.EventRecord.FromString(call.recv()).topic, "auth")
        call.cancel()
        with self.assertRaises(wire.CallFailed) as e:
            while call.recv():
                pass
        self.assertEqual(e.exception.code, wire.CANCELLED)
        self.unary_works(c)

    def test_a_deadline_ends_a_stream(self):
        c = self.signed_in()
        began = time.monotonic()
        call = self.open_events(c, deadline_ms=500)
        with self.assertRaises(wire.CallFailed) as e:
            while call.recv():
                pass
        self.assertEqual(e.exception.code, wire.DEADLINE_EXCEEDED)
        self.assertGreater(time.monotonic() - began, 0.4)

    def make_sound(self, seconds):
        path = self.path("noise.wav")
        with wave.open(path, "wb") as w:
            w.setnchannels(2)
            w.setsampwidth(2)
            w.setframerate(48000)
            w.writeframes(random.Random(11).randbytes(seconds * 48000 * 4))
        with open(path, "rb") as f:
            return f.read()

    def upload(self, c, data):
        leaves, digest = digest_of(data)
        o = c.unary("cauce.orchestrator.v1.Upload.Open", self.orchestrator.OpenUploadRequest(
            filename="noise.wav", size=len(data), digest=digest, head=data[:4096]), self.orchestrator.OpenUploadReply, slot=1)
        call = c.open("cauce.origin.v1.Upload.Leaves", slot=1, route=o.route, deadline_ms=60000)
        call.send(self.origin.LeavesRequest(upload_id=o.upload_id, digests=b"".join(leaves)).SerializeToString(), True)
        self.assertIsNotNone(call.recv())
        self.assertIsNone(call.recv())
        call = c.open("cauce.origin.v1.Upload.Put", slot=1, route=o.route, deadline_ms=60000)
        for first in range(0, len(leaves), 4):
            call.send(self.origin.PutRequest(upload_id=o.upload_id if first == 0 else "", leaf=first,
                                             data=data[first * LEAF:(first + 4) * LEAF]).SerializeToString())
        call.half_close()
        put = self.origin.PutReply.FromString(call.recv())
        self.assertIsNone(call.recv())
        self.assertEqual((put.stored_leaves, put.missing_bytes), (len(leaves), 0))
        return c.unary("cauce.orchestrator.v1.Upload.Commit", self.orchestrator.CommitRequest(
            upload_id=o.upload_id, title="Noise"), self.orchestrator.CommitReply, slot=1)

    def wait_playable(self, c, item):
        call = c.open("cauce.event.v1.Event.Read", slot=1, route="transcode")
        call.send(self.event.ReadRequest(topic="transcode", from_seq=1, follow=True,
                                         subject=item).SerializeToString(), half_close=True)
        while True:
            kind = self.event.EventRecord.FromString(call.recv(timeout=120)).kind
            self.assertNotEqual(kind, "job.failed")
            if kind == "item.playable":
                return call.cancel()

    def test_an_object_goes_up_and_comes_back(self):
        c = self.signed_in()
        data = self.make_sound(30)
        item = self.upload(c, data).item_id
        self.wait_playable(c, item)
        play = c.unary("cauce.orchestrator.v1.Playback.Open", self.orchestrator.OpenRequest(item_id=item),
                       self.orchestrator.OpenReply, slot=1)
        self.assertEqual(play.mode, self.orchestrator.DIRECT)
        self.assertEqual(play.source.digest, digest_of(data)[1])
        call = self.open_read(c, play)
        got = bytearray()
        while (m := call.recv()) is not None:
            got += self.origin.ReadReply.FromString(m).data
        self.assertEqual(hashlib.sha256(got).digest(), hashlib.sha256(data).digest())
        self.reader_that_gives_no_credit(c, play)

    def open_read(self, c, play):
        call = c.open("cauce.origin.v1.Object.Read", slot=1, route=play.source.route, deadline_ms=60000)
        call.send(self.origin.ReadRequest(digest=play.source.digest,
                                          media_token=play.media_token).SerializeToString(), half_close=True)
        return call

    def reader_that_gives_no_credit(self, c, play):
        """gets what the first credit allows and no byte more, while other calls go on."""
        call = self.open_read(c, play)
        call.grant = False
        spent = []
        on_data = call.on_data
        call.on_data = lambda flags, payload: (spent.append(len(payload) + wire.DATA_COST), on_data(flags, payload))
        c.wait(lambda: sum(spent) > wire.CALL_CREDIT - wire.DATA_COST * 2, 10)
        for _ in range(20):
            self.unary_works(c)
        self.assertLessEqual(sum(spent), wire.CALL_CREDIT)
        call.cancel()

    # ---- connections ----

    def test_both_directions_change_their_keys(self):
        c = self.signed_in()
        while c.out.counter < wire.REKEY_EVERY + 100 or c.into.counter < wire.REKEY_EVERY + 100:
            c.send(wire.PING, 0)
            c.flush()
            c.wait(lambda: c.out.counter - c.acked < 16, 10)
        self.unary_works(c)

    def test_a_changed_record_closes_the_connection(self):
        c = self.signed_in()
        c.ping()
        body = bytearray(c.out.seal(c._header(wire.RECORD), bytes([wire.PING, 0, 0])))
        body[-1] ^= 1
        c._send_body(bytes(body))
        with self.assertRaises(wire.WireError):
            c.wait(lambda: False, 10)

    def test_a_repeated_record_closes_the_connection(self):
        c = self.signed_in()
        body = c.out.seal(c._header(wire.RECORD), bytes([wire.PING, 0, 0]))
        c._send_body(body)
        c._send_body(body)
        with self.assertRaises(wire.WireError):
            c.wait(lambda: False, 10)

    def test_spending_more_credit_than_given_closes_the_connection(self):
        c = self.signed_in()
        call = c.open("cauce.session.v1.Session.Login", deadline_ms=60000)
        with self.assertRaises(wire.WireError):
            c.send(wire.DATA, call.id, bytes(wire.CALL_CREDIT))  # at once: what arrives may bring more credit
            c.flush()
            c.wait(lambda: False, 10)

    def test_a_wrong_server_key_gets_no_answer(self):
        wrong = self.server[:self.server.index("#") + 1] + "A" * 42 + "E"
        with self.assertRaises(wire.WireError):
            wire.Connection(wrong)


if __name__ == "__main__":
    main()
