"""lib/json against protobuf's own JSON mapping: random messages of every type in both directions, and values of
every kind for fields of every kind. Another CAUCE_TEST_SEED makes other messages; see docs/testing.md."""

import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "support"))
import messages  # noqa: E402

try:
    from google.protobuf import descriptor, json_format, message_factory, symbol_database
except ImportError:
    if os.environ.get("CI"):
        raise
    print("skipped: python3-protobuf is not installed")
    sys.exit(0)

PER_TYPE = 40
DEFAULTS, IGNORE_UNKNOWN = 1, 2
FLOATS = (descriptor.FieldDescriptor.CPPTYPE_DOUBLE, descriptor.FieldDescriptor.CPPTYPE_FLOAT)
EVERYTHING = "cauce.test.v1.Everything"


def load_everything():
    out = tempfile.TemporaryDirectory(prefix="cauce-json-")
    subprocess.run(["protoc", "-I", HERE, "--python_out", out.name, os.path.join(HERE, "everything.proto")],
                   check=True)
    sys.path.insert(0, out.name)
    import everything_pb2  # noqa: F401
    out.cleanup()


class Peer:
    """oracle_peer.c, line by line."""

    def __init__(self):
        self.process = subprocess.Popen([os.path.join(os.environ["CAUCE_BIN_DIR"], "json_oracle_peer")],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, *words):
        line = " ".join(str(w) for w in words)
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().decode()
        if not answer.endswith("\n"):
            raise AssertionError(f"the peer died of: {line[:2000]}")
        return answer[:-1]

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        return self.process.wait(60)


def difference(a, b, at=""):
    """The first place where two trees of JSON differ; None when they do not."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return next((d for k in a for d in [difference(a[k], b[k], f"{at}.{k}")] if d), None)
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return next((d for i in range(len(a)) for d in [difference(a[i], b[i], f"{at}[{i}]")] if d), None)
    return None if a == b else f"{at}: {str(a)[:300]} is not {str(b)[:300]}"


def packed(message):
    return message.SerializeToString(deterministic=True)


class Oracle(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        for name in messages.proto_files():
            messages.load(name)
        load_everything()
        cls.pool = symbol_database.Default().pool
        cls.factory = message_factory.MessageFactory(cls.pool)
        cls.peer = Peer()
        cls.seed = int(os.environ.get("CAUCE_TEST_SEED") or 1)

    @classmethod
    def tearDownClass(cls):
        assert cls.peer.close() == 0

    def types(self):
        return self.peer.ask("types").split(" ")

    def message(self, name):
        return self.factory.GetPrototype(self.pool.FindMessageTypeByName(name))()

    def seeds(self, name):
        r = random.Random(f"{self.seed} {name}")
        return [r.getrandbits(63) | 1 for _ in range(PER_TYPE)]

    def test_no_type_of_ours_is_left_out(self):
        def nested(d):
            yield d.full_name
            for n in d.nested_types:
                yield from nested(n)

        known = set(self.types())
        for name in messages.proto_files():
            if name == "options":  # of the generator
                continue
            for d in messages.load(name).DESCRIPTOR.message_types_by_name.values():
                self.assertLessEqual(set(nested(d)), known)

    def test_what_we_print_is_what_protobuf_prints(self):
        for name in self.types():
            for seed in self.seeds(name):
                for flags in (0, DEFAULTS):
                    data, text = self.peer.ask("make", name, seed, flags).split(" ", 1)
                    message = self.message(name)
                    message.ParseFromString(bytes.fromhex(data))
                    where = f"{name} of seed {seed}: {text}"
                    want = json_format.MessageToJson(message, including_default_value_fields=bool(flags))
                    self.assertIsNone(difference(json.loads(text), json.loads(want)), where)
                    again = self.message(name)
                    json_format.Parse(text, again)
                    self.assertEqual(packed(again), packed(message), where)

    def test_what_protobuf_prints_is_what_we_read(self):
        for name in self.types():
            for seed, style in zip(self.seeds(name), itertools.cycle(range(8))):
                data, _ = self.peer.ask("make", name, seed, 0).split(" ", 1)
                message = self.message(name)
                message.ParseFromString(bytes.fromhex(data))
                text = json.dumps(json_format.MessageToDict(
                    message, preserving_proto_field_name=bool(style & 1), use_integers_for_enums=bool(style & 2),
                    including_default_value_fields=bool(style & 4)), ensure_ascii=bool(style & 1))
                answer = self.peer.ask("read", name, 0, text)
                self.assertEqual(answer[:3], "ok ", f"{answer}: {name} of seed {seed}: {text}")
                again = self.message(name)
                again.ParseFromString(bytes.fromhex(answer[3:]))
                if style & 4 == 0:
                    self.assertEqual(packed(again), packed(message), text)
                else:  # absent and default are one for fields without presence: Python says what it makes of it
                    want = self.message(name)
                    json_format.Parse(text, want)
                    self.assertEqual(packed(again), packed(want), text)

    # ---- one value for one field, good or bad ----

    NUMBERS = ["0", "-0", "1", "-1", "2147483647", "2147483648", "-2147483648", "-2147483649", "4294967295",
               "4294967296", "9223372036854775807", "-9223372036854775808", "1.0", "1.5", "-1.0", "1e3", "1e18",
               "1e19", "1e-3", "3.4028234e38", "3.5e38", "1e308", "5e-324", "-0.0", "123456789012345678"]
    TEXTS = ["", "0", "1", "-1", "007", "1.5", "1e3", "18446744073709551615", "18446744073709551616",
             "9223372036854775808", "-9223372036854775809", "NaN", "nan", "Infinity", "-Infinity", "inf", "1x", "x",
             "true", "false", "True", "RED", "red", "BLUE", "BELOW", "COLOUR_NONE", "77", "AA==", "AA=", "AA",
             "-_8=", "+/8=", "-_8", "A", "Zh==", "é", "\U0001F3AC", "2026-11-21T09:05:29Z",
             "2026-11-21T09:05:29.1Z", "2026-11-21T09:05:29.123456789Z", "2026-11-21T09:05:29+01:00",
             "2026-11-21T09:05:29.5-11:30", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999999Z",
             "2026-02-29T00:00:00Z", "2024-02-29T00:00:00Z", "2026-11-21", "1.5s", "-1.5s", "1s", "-0.5s",
             "0.000000001s", "315576000000s", "-315576000000s", "315576000001s", "s", "1", "1.s", "1m"]
    OTHERS = ["null", "true", "false", "[]", "{}", "[1]", "[null]", '["a"]', '{"name":"x"}', '{"a":1}', "[[]]",
              '{"1":{"name":"x"},"2":{}}', '{"true":"RED","false":5}', '{"-3":"AA=="}', '{"k":"v","l":"w"}',
              '{"k":"2026-11-21T09:05:29.25Z"}', '{"7":"1.5s"}', '{"1.5":{}}', '{"":1}', '{"x":null}',
              '["RED",5,"BELOW"]', '[1,"2",3.0]', '["1.5s"]', '["2026-11-21T09:05:29Z"]', '[{"name":"x"},{}]',
              '{"again":{"again":{}}}']

    # What Python takes though the mapping does not say so.
    LAX = {("messageValue", '""'), ("messageValue", "[]"), ("chosenInner", '""'), ("chosenInner", "[]"),
           ("inners", "[[]]"), ("durationValue", '"1.s"'), ("sint64Map", '{"7":"1.5s"}')}

    # Where we take less than Python, and are right.
    @staticmethod
    def may_differ(field, value, ours, theirs):
        if (field.json_name, value) in Oracle.LAX:
            return True
        kind = field.type
        text = json.loads(value, parse_constant=str)
        bytes_ = kind == descriptor.FieldDescriptor.TYPE_BYTES
        if theirs and not ours:
            return ((bytes_ and isinstance(text, (str, list, dict)))  # characters and bits that mean nothing
                    or isinstance(text, bool)  # truths for numbers, 1 and 0 for truths
                    or (kind == descriptor.FieldDescriptor.TYPE_BOOL)
                    or kind == descriptor.FieldDescriptor.TYPE_ENUM  # 1.5 for an enum becomes 1
                    or (isinstance(text, str) and field.cpp_type in FLOATS))
        # protobuf-c does not send a zero that has a sign, where absent means zero.
        return value == "-0.0" and field.cpp_type in FLOATS and field.label != field.LABEL_REPEATED

    def differ(self, field, value):
        """None when both make the same of it, else what each made."""
        text = json.dumps({field.json_name: 0}).replace(": 0", ": " + value)
        answer = self.peer.ask("read", EVERYTHING, 0, text)
        ours = bytes.fromhex(answer[3:]) if answer.startswith("ok ") else None
        want = self.message(EVERYTHING)
        try:
            json_format.Parse(text, want)
            theirs = packed(want)
        except (json_format.ParseError, TypeError, AttributeError):
            theirs = None
        if ours is not None:
            again = self.message(EVERYTHING)
            again.ParseFromString(ours)
            ours = packed(again)
        if ours == theirs or self.may_differ(field, value, ours is not None, theirs is not None):
            return None
        return f"{text}: we {ours if ours is not None else answer}, protobuf {theirs}"

    def test_every_value_for_every_field(self):
        values = self.NUMBERS + [json.dumps(t) for t in self.TEXTS] + self.OTHERS
        fields = self.pool.FindMessageTypeByName(EVERYTHING).fields
        wrong = [d for f in fields for v in values for d in [self.differ(f, v)] if d]
        self.assertFalse(wrong, "\n".join(wrong))

    def test_objects_that_are_not_messages(self):
        inner = '{"messageValue":%s}'
        for text, says in [
                ('{"nothing":1}', "no field 'nothing' in Everything"),
                (inner % '{"nothing":1}', "no field 'messageValue.nothing' in Inner"),
                ('{"inners":[{},{"name":1}]}', "field 'inners[1].name' must be a string"),
                ('{"inners":[{"again":{"inners":[{},{},{"name":1}]}}]}',
                 "field 'inners[0].again.inners[2].name' must be a string"),
                ('{"int32Map":{"7":{"name":1}}}', "field 'int32Map[\"7\"].name' must be a string"),
                ('{"int32Map":{"x":{}}}', "field 'int32Map[\"x\"]' must be a whole number of 32 bits"),
                ('{"uint64s":[1,"x"]}', "field 'uint64s[1]' must be a whole number from 0"),
                ('{"chosenString":"a","chosenNumber":1}', "cannot be given beside"),
                ('{"int32Value":1,"int32_value":1}', "field 'int32Value' is given twice"),
                ('{"int32Value":1,"int32Value":1}', "duplicate"),
                ('[]', "Everything must be a JSON object"),
                ('"x"', "Everything must be a JSON object"),
                ('{"inners":' + "[" * 70 + "]" * 70 + "}", "nested deeper than 64 levels")]:
            answer = self.peer.ask("read", EVERYTHING, 0, text)
            self.assertEqual(answer[:3], "no ", text)
            self.assertIn(says, answer)
        self.assertEqual(self.peer.ask("read", EVERYTHING, IGNORE_UNKNOWN, '{"nothing":[{"a":1}],"inners":[{"b":1}]}'),
                         "ok aa0200")

    def test_map_entries_of_one_key_are_printed_once_and_the_last_counts(self):
        e = self.message(EVERYTHING)
        data = b""
        for value in ("first", "second"):
            e.string_map["k"] = value
            data += packed(e)
        self.assertEqual(self.peer.ask("print", EVERYTHING, 0, data.hex()), 'ok {"stringMap":{"k":"second"}}')

    def test_depth(self):
        def nested(n):
            outer = self.message(EVERYTHING)
            at = outer
            for _ in range(n):
                at = at.message_value.again
            at.SetInParent()
            return packed(outer).hex()

        self.assertTrue(self.peer.ask("print", EVERYTHING, 0, nested(10)).startswith("ok {"))
        self.assertTrue(self.peer.ask("print", EVERYTHING, 0, nested(40)).startswith("no "))


if __name__ == "__main__":
    unittest.main()
