#!/usr/bin/env python3
"""Writes tree_vectors.txt: digests of objects, by an implementation that shares nothing with tree.c.

It follows the recursive definition (left half: the largest power of two of leaves below n), while
tree.c folds. Byte i of the object of size s is ((i * 2654435761 + s) >> 13) & 255.
"""
import hashlib

LEAF = 65536
SIZES = [0, 1, 2, 65535, 65536, 65537, 131072, 131073, 3 * LEAF, 3 * LEAF + 1, 4 * LEAF, 5 * LEAF + 17,
         6 * LEAF, 7 * LEAF - 1, 7 * LEAF, 8 * LEAF, 9 * LEAF, 13 * LEAF - 1, 16 * LEAF + 1, 31 * LEAF,
         33 * LEAF + 4097]


def b2(person, data):
    return hashlib.blake2b(data, digest_size=32, person=person.ljust(16, b"\0")).digest()


def top(leaves):
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return b2(b"cauce-object-nd", top(leaves[:k]) + top(leaves[k:]))


def digest(data):
    leaves = [b2(b"cauce-object-lf", data[i:i + LEAF]) for i in range(0, len(data), LEAF)]
    return b2(b"cauce-object-rt", len(data).to_bytes(8, "big") + (top(leaves) if leaves else bytes(32)))


for s in SIZES:
    print(s, digest(bytes(((i * 2654435761 + s) >> 13) & 255 for i in range(s))).hex())
