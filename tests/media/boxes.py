"""Small surgery on containers, for files that no muxer writes."""
import struct


def mp4_boxes(data, begin, end):
    """(type, begin, body, end) of the boxes in data[begin:end]."""
    while begin + 8 <= end:
        size, kind = struct.unpack(">I4s", data[begin:begin + 8])
        body = begin + 8
        if size == 1:
            size = struct.unpack(">Q", data[body:body + 8])[0]
            body += 8
        size = size or end - begin
        if size < body - begin or begin + size > end:
            raise ValueError("no box at %d" % begin)
        yield kind.decode("latin1"), begin, body, begin + size
        begin += size


def mp4_find(data, *path):
    """(begin, body, end) of the first box at that path; a name of the form "trak#1" counts from 0."""
    begin, body, end = 0, 0, len(data)
    for name in path:
        kind, _, index = name.partition("#")
        found = [b[1:] for b in mp4_boxes(data, body, end) if b[0] == kind]
        begin, body, end = found[int(index or 0)]
    return begin, body, end


def box(kind, body):
    return struct.pack(">I4s", 8 + len(body), kind.encode("latin1")) + body


def full_box(kind, version, flags, body):
    return box(kind, struct.pack(">I", version << 24 | flags) + body)


def mp4_replace(data, path, new):
    """Puts the bytes `new` for the box at `path` and corrects the sizes around it."""
    begin, _, end = mp4_find(data, *path)
    grown = len(new) - (end - begin)
    out = bytearray(data[:begin] + new + data[end:])
    for depth in range(1, len(path)):
        at = mp4_find(data, *path[:depth])[0]
        struct.pack_into(">I", out, at, struct.unpack_from(">I", out, at)[0] + grown)
    return bytes(out)


def mp4_patch(data, path, offset, new):
    """Overwrites bytes of the body of the box at `path`."""
    _, body, _ = mp4_find(data, *path)
    return data[:body + offset] + new + data[body + offset + len(new):]


def edit_list(edits):
    """edts of (duration in movie ticks, media time or -1) rows."""
    rows = b"".join(struct.pack(">IiHH", d, m, 1, 0) for d, m in edits)
    return box("edts", full_box("elst", 0, 0, struct.pack(">I", len(edits)) + rows))


# ---- Matroska ----

def ebml(ident, body, size=None):
    """An element; ident as bytes. size: what it claims, when that is not its true size."""
    n = len(body) if size is None else size
    return ident + (1 << 56 | n).to_bytes(8, "big") + body


def ebml_uint(ident, v):
    return ebml(ident, max(v, 0).to_bytes(max(1, (v.bit_length() + 7) // 8), "big"))


# ---- AVI ----

def riff_chunks(data, begin, end):
    while begin + 8 <= end:
        kind, size = data[begin:begin + 4], struct.unpack("<I", data[begin + 4:begin + 8])[0]
        yield kind, begin, begin + 8, min(begin + 8 + size, end)
        begin += 8 + size + size % 2
