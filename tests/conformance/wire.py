"""The client side of docs/protocol.md, written from that page alone.

One connection, one thread: whoever waits for something pumps records until it is there or its time is over.
Numbers in comments are headings of the page.
"""

import base64
import hashlib
import hmac
import os
import socket
import struct
import time
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.exceptions import InvalidTag

MAX_BODY = 262144
REKEY_EVERY = 65536
MAX_UNACKED = 32
ACK_RECORDS, ACK_BYTES = 8, 65536
CALL_CREDIT, CONNECTION_CREDIT, DATA_COST = 65536, 1 << 20, 16
PIECE = 32768  # payload of one DATA frame

INIT, RESPONSE, RECORD, CLOSE = 1, 2, 5, 6
AUTH, OPEN, DATA, END, STATUS, CANCEL, WINDOW, ACK, PING, GOAWAY = range(1, 11)
LAST, HALF = 0x80, 0x40  # of DATA
TRACE, METADATA, ATTEMPT = 0x02, 0x04, 0x08  # of OPEN

OK, CANCELLED, INVALID_ARGUMENT, DEADLINE_EXCEEDED, NOT_FOUND, PERMISSION_DENIED = 0, 1, 3, 4, 5, 7
RESOURCE_EXHAUSTED, UNIMPLEMENTED, UNAVAILABLE, UNAUTHENTICATED = 8, 12, 14, 16


class WireError(Exception):
    """The other side broke the protocol, or closed the connection."""


class CallFailed(Exception):
    def __init__(self, code, retry_after_ms, message, details):
        super().__init__(f"status {code}: {message}")
        self.code, self.retry_after_ms, self.message, self.details = code, retry_after_ms, message, details


def varint(n):
    out = bytearray()
    while n >= 0x80:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def read_varint(b, at):
    value = shift = 0
    while True:
        if at >= len(b) or shift > 63:
            raise WireError("varint cut short or too long")
        value |= (b[at] & 0x7F) << shift
        at += 1
        if not b[at - 1] & 0x80:
            return value, at
        shift += 7


# ---------------------------------------------------------------- Noise


def _blake2b(data):
    return hashlib.blake2b(data).digest()


def _hkdf(key, material):
    temp = hmac.new(key, material, hashlib.blake2b).digest()
    one = hmac.new(temp, b"\x01", hashlib.blake2b).digest()
    return one, hmac.new(temp, one + b"\x02", hashlib.blake2b).digest()


def _nonce(n):
    return b"\0\0\0\0" + struct.pack("<Q", n)


class NoiseNK:
    """The initiator's side of Noise_NK_25519_ChaChaPoly_BLAKE2b."""

    def __init__(self, prologue, responder_key):
        name = b"Noise_NK_25519_ChaChaPoly_BLAKE2b"
        self.h = self.ck = name.ljust(64, b"\0")
        self.key = None
        self.n = 0
        self.rs = responder_key
        self._mix_hash(prologue)
        self._mix_hash(responder_key)
        self.e = X25519PrivateKey.generate()

    def _mix_hash(self, data):
        self.h = _blake2b(self.h + data)

    def _mix_dh(self, public):
        self.ck, key = _hkdf(self.ck, self.e.exchange(X25519PublicKey.from_public_bytes(public)))
        self.key, self.n = key[:32], 0

    def write_first(self, payload):
        e = self.e.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self._mix_hash(e)
        self._mix_dh(self.rs)
        sealed = ChaCha20Poly1305(self.key).encrypt(_nonce(self.n), payload, self.h)
        self.n += 1
        self._mix_hash(sealed)
        return e + sealed

    def read_second(self, message):
        re, sealed = message[:32], message[32:]
        self._mix_hash(re)
        self._mix_dh(re)
        payload = ChaCha20Poly1305(self.key).decrypt(_nonce(self.n), sealed, self.h)
        self._mix_hash(sealed)
        return payload

    def split(self):
        send, receive = _hkdf(self.ck, b"")
        return send[:32], receive[:32]


class Sealer:
    """One direction's key and counter, rekeyed every 65,536 records."""

    def __init__(self, key):
        self.key, self.counter = key, 0
        self.cipher = ChaCha20Poly1305(key)

    def _advance(self):
        if self.counter and self.counter % REKEY_EVERY == 0:
            self.key = self.cipher.encrypt(b"\0\0\0\0" + b"\xff" * 8, b"\0" * 32, b"")[:32]
            self.cipher = ChaCha20Poly1305(self.key)
        return self.counter

    def seal(self, header, plain):
        n = self._advance()
        header += struct.pack(">Q", n)
        self.counter += 1
        return header + self.cipher.encrypt(_nonce(n), plain, header)

    def open(self, body):
        n = self._advance()
        if struct.unpack(">Q", body[12:20])[0] != n:
            raise WireError("a record is missing or came twice")
        self.counter += 1
        try:
            return self.cipher.decrypt(_nonce(n), body[20:], body[:20])
        except InvalidTag:
            raise WireError("a record's tag is wrong") from None


# ---------------------------------------------------------------- calls


class Call:
    def __init__(self, conn, call_id):
        self.conn, self.id = conn, call_id
        self.credit = CALL_CREDIT
        self.messages = []
        self.partial = bytearray()
        self.status = None  # (code, retry_after_ms, message, details) once it ended
        self.partial_cost = 0
        self.owed = 0  # credit to give back
        self.grant = True  # give credit for what was taken

    def send(self, message, half_close=False, timeout=30):
        """A message, in pieces as credit allows. Ends early when the server has ended the call."""
        at, first = 0, True
        while first or at < len(message):
            first = False
            piece = message[at:at + PIECE]
            cost = len(piece) + DATA_COST
            self.conn.wait(lambda: self.status or (self.credit >= cost and self.conn.credit >= cost), timeout)
            if self.status:
                return
            self.credit -= cost
            self.conn.credit -= cost
            at += len(piece)
            is_last = at == len(message)
            self.conn.send(DATA | (LAST if is_last else 0) | (HALF if is_last and half_close else 0), self.id, piece)

    def half_close(self):
        self.conn.send(END, self.id)

    def cancel(self):
        """No status will come: the call is over as soon as it is said."""
        self.conn.send(CANCEL, self.id)
        self.conn.flush()
        self.conn.calls.pop(self.id, None)
        self.messages.clear()
        self.status = (CANCELLED, 0, "cancelled", b"")

    def recv(self, timeout=30):
        """The next message; None when the call ended well. CallFailed otherwise."""
        self.conn.wait(lambda: self.messages or self.status, timeout)
        if self.messages:
            message, cost = self.messages.pop(0)
            self._give_back(cost)
            return message
        if self.status[0] != OK:
            raise CallFailed(*self.status)
        return None

    def _give_back(self, cost):
        self.owed += cost
        if self.grant and not self.status and self.owed >= CALL_CREDIT // 4:
            self.conn.send(WINDOW, self.id, varint(self.owed))
            self.owed = 0

    def on_data(self, flags, payload):
        self.partial += payload
        self.partial_cost += len(payload) + DATA_COST
        if flags & LAST:
            self.messages.append((bytes(self.partial), self.partial_cost))
            self.partial.clear()
        else:  # a message may be larger than the credit: what came of it is given back at once
            self._give_back(self.partial_cost)
        self.partial_cost = 0

    def on_status(self, payload):
        self.status = (OK, 0, "", b"")
        if payload:
            code, at = read_varint(payload, 0)
            retry_ms, at = read_varint(payload, at)
            n, at = read_varint(payload, at)
            if at + n > len(payload):
                raise WireError("a status is cut short")
            self.status = (code, retry_ms, payload[at:at + n].decode(), payload[at + n:])


# ---------------------------------------------------------------- connection


class Connection:
    """cauce://host:port#key, link 1."""

    def __init__(self, address, timeout=10):
        url = urlsplit(address)
        key = base64.urlsafe_b64decode(url.fragment + "=" * (-len(url.fragment) % 4))
        self.sock = socket.create_connection((url.hostname, url.port), timeout)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.inbox = bytearray()
        self.calls = {}
        self.next_call = 1
        self.credit = CONNECTION_CREDIT
        self.unacked = 0  # records that came since our last ACK
        self.unacked_bytes = 0
        self.acked = 0  # records of ours that the server has opened
        self.going_away = False
        self.n_received = {}  # frames by type
        try:
            self._handshake(key, timeout)
            self.send(PING, 0)
            self.flush()
        except Exception:
            self.sock.close()
            raise

    def close(self):
        try:
            self._send_body(self.out.seal(self._header(CLOSE), b""))
        except (OSError, WireError):
            pass
        self.sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    # ---- nng ----

    def _read_exactly(self, n, deadline):
        while len(self.inbox) < n:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("the server says nothing")
            self.sock.settimeout(left)
            try:
                got = self.sock.recv(1 << 18)
            except socket.timeout:
                raise TimeoutError("the server says nothing") from None
            except ConnectionError as e:
                raise WireError(f"the connection was closed: {e}") from None
            if not got:
                raise WireError("the connection was closed")
            self.inbox += got
        out = bytes(self.inbox[:n])
        del self.inbox[:n]
        return out

    def _send_body(self, body):
        self.sock.settimeout(30)
        try:
            self.sock.sendall(struct.pack(">Q", len(body) + 4) + b"\x80\0\0\1" + body)
        except ConnectionError as e:
            raise WireError(f"the connection was closed: {e}") from None

    def _read_body(self, deadline):
        """One message's body; a message that has begun to arrive is waited for."""
        if len(self.inbox) < 8:
            self.inbox[:0] = self._read_exactly(8, deadline)
        n = struct.unpack(">Q", self.inbox[:8])[0]
        if not 4 <= n <= MAX_BODY + 4:
            raise WireError(f"a message of {n} bytes")
        return self._read_exactly(8 + n, max(deadline, time.monotonic() + 10))[12:]

    # ---- handshake ----

    def _header(self, kind):
        return b"CQ\x01" + bytes([kind]) + self.session

    def _handshake(self, key, timeout):
        deadline = time.monotonic() + timeout
        self.sock.sendall(b"\0SP\0\0\x30\0\0")
        if self._read_exactly(8, deadline) != b"\0SP\0\0\x31\0\0":
            raise WireError("the other side is not a REP socket of nng")
        self.session = os.urandom(8)
        noise = NoiseNK(b"cauce/1\x01\x01", key)
        message = noise.write_first(b"\0" * 64)
        mac_key = hashlib.blake2b(b"cauce-mac1" + key, digest_size=32).digest()

        def mac1(b):
            return hashlib.blake2b(b, key=mac_key, digest_size=16).digest()

        init = self._header(INIT) + b"\x01" + struct.pack(">H", len(message)) + message
        self._send_body(init + mac1(init))
        body = self._read_body(deadline)
        if len(body) < 31:
            raise WireError("a response cut short")
        n = struct.unpack(">H", body[13:15])[0]
        if body[:13] != self._header(RESPONSE) + b"\x01" or len(body) != 15 + n + 16 or body[-16:] != mac1(body[:-16]):
            raise WireError("that is not a response")
        noise.read_second(body[15:15 + n])
        out, into = noise.split()
        self.out, self.into = Sealer(out), Sealer(into)
        self.frames = bytearray()

    # ---- sending ----

    def send(self, kind, call_id, payload=b""):
        frame = bytes([kind]) + varint(call_id) + varint(len(payload)) + payload
        if len(self.frames) + len(frame) > MAX_BODY // 4:
            self.flush()
        self.frames += frame

    def flush(self):
        """What is waiting, in one record. An ACK goes along when one is owed."""
        if self.unacked:
            self.unacked = self.unacked_bytes = 0
            self.send(ACK, 0, varint(self.into.counter))
        if not self.frames:
            return
        plain, self.frames = bytes(self.frames), bytearray()
        while self.out.counter - self.acked >= MAX_UNACKED:
            self.receive(time.monotonic() + 20)
        self._send_body(self.out.seal(self._header(RECORD), plain))

    # ---- receiving ----

    def receive(self, deadline):
        body = self._read_body(deadline)
        if len(body) < 36 or body[:4] not in (b"CQ\x01\x05", b"CQ\x01\x06") or body[4:12] != self.session:
            return  # of another session: dropped
        plain = self.into.open(body)
        if body[3] == CLOSE:
            raise WireError("the server closed the connection")
        self.unacked += 1
        self.unacked_bytes += len(body)
        at = 0
        while at < len(plain):
            first = plain[at]
            call_id, at = read_varint(plain, at + 1)
            n, at = read_varint(plain, at)
            if at + n > len(plain):
                raise WireError("a frame is cut short")
            self._on_frame(first & 0x1F, first & 0xE0, call_id, plain[at:at + n])
            at += n

    def _on_frame(self, kind, flags, call_id, payload):
        self.n_received[kind] = self.n_received.get(kind, 0) + 1
        call = self.calls.get(call_id)
        if kind == ACK:
            self.acked = read_varint(payload, 0)[0]
        elif kind == WINDOW and call_id == 0:
            self.credit += read_varint(payload, 0)[0]
        elif kind == GOAWAY:
            self.going_away = True
        elif kind == PING:
            self.unacked = max(self.unacked, ACK_RECORDS)  # answered at once
        elif call is None:
            return  # of a call that has ended here
        elif kind == WINDOW:
            call.credit += read_varint(payload, 0)[0]
        elif kind == DATA:
            call.on_data(flags, payload)
        elif kind == STATUS:
            call.on_status(payload)
            del self.calls[call_id]

    def wait(self, is_done, timeout):
        deadline = time.monotonic() + timeout
        while not is_done():
            self.flush_if_due(force=bool(self.frames))
            self.receive(deadline)
            self.flush_if_due()
        self.flush_if_due(force=bool(self.frames))

    def flush_if_due(self, force=False):
        if force or self.unacked >= ACK_RECORDS or self.unacked_bytes >= ACK_BYTES // 2:
            self.flush()

    # ---- calls ----

    def auth(self, slot, token):
        self.send(AUTH, slot, token.encode())

    def ping(self, timeout=10):
        """Returns when the server has opened the PING's record."""
        self.send(PING, 0)
        self.flush()
        mine = self.out.counter
        self.wait(lambda: self.acked >= mine, timeout)

    def open(self, method, slot=0, deadline_ms=0, route="", key="", metadata=None, traceparent=None, attempt=1,
             unknown_flags=0, behind=b""):
        """unknown_flags, behind: what a later version may say, and this one ignores."""
        call = Call(self, self.next_call)
        self.next_call += 1
        self.calls[call.id] = call
        flags, tail = 0, b""
        for text in (method, route, key):
            tail += bytes([len(text.encode())]) + text.encode()
        if traceparent:
            flags |= TRACE
            tail += traceparent
        if metadata:
            flags |= METADATA
            tail += metadata
        if attempt > 1:
            flags |= ATTEMPT
            tail += varint(attempt)
        tail += behind
        self.send(OPEN, call.id, bytes([flags | unknown_flags]) + varint(slot) + varint(deadline_ms) + tail)
        return call

    def unary(self, method, request, reply_type, timeout=30, **options):
        """A message in, a message out; CallFailed with the server's status otherwise."""
        call = self.open(method, deadline_ms=int(timeout * 1000), **options)
        call.send(request.SerializeToString(), half_close=True)
        message = call.recv(timeout + 5)
        if message is None or call.recv(timeout + 5) is not None:
            raise WireError(f"{method} did not answer with one message")
        return reply_type.FromString(message)


def metadata(pairs):
    """The block of an OPEN with flag 04."""
    out = varint(len(pairs))
    for key, value in pairs.items():
        out += bytes([len(key)]) + key.encode() + varint(len(value)) + value.encode()
    return out
