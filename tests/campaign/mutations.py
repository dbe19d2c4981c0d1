"""Damaged and hostile versions of a file, from a random generator."""

from __future__ import annotations

import io
import os
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

Mutation = Callable[[bytes, random.Random], bytes]


def flip(content: bytes, rng: random.Random) -> bytes:
    """One bit is another."""
    changed = bytearray(content)
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def truncate(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def noise(content: bytes, rng: random.Random) -> bytes:
    """Random bytes behind the beginning of the file, which tells its format."""
    return content[: rng.choice([0, 4, 16, 64])] + rng.randbytes(rng.randrange(1, 2000))


def spoil(content: bytes, rng: random.Random) -> bytes:
    """A run of bytes, often of the header, is at its largest, zero, or random: sizes and counts become huge."""
    changed = bytearray(content)
    start = rng.randrange(min(len(changed), rng.choice([64, 512, 10**9])))
    length = rng.choice([1, 2, 4, 8, 16])
    changed[start : start + length] = rng.choice([b"\xff" * length, bytes(length), rng.randbytes(length)])
    return bytes(changed)


def flips(content: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.randrange(2, 20)):
        content = flip(content, rng)
    return content


def splice(content: bytes, rng: random.Random) -> bytes:
    """A part is repeated, removed or moved."""
    a, b, c = sorted(rng.randrange(len(content) + 1) for _ in range(3))
    return rng.choice([content[:b] + content[a:], content[:a] + content[b:], content[:a] + content[b:c] + content[a:b]])


def nest(content: bytes, rng: random.Random) -> bytes:
    """Brackets within brackets, and a row of one endless cell; some short, some long."""
    n = int(10 ** rng.uniform(1, 5))
    choices = (b"[" * 2 * n, b'{"a":' * n, b"- " * (n // 20), b'"' * n, b"," * (n // 10), b"\n" * (n // 10))
    return rng.choice(choices) or b"["


DAMAGE: tuple[Mutation, ...] = (flip, truncate)
HOSTILE: tuple[Mutation, ...] = (flip, truncate, noise, spoil, flips, splice, nest)


class Payload:
    """Makes the file ``sentinel`` when it is unpickled."""

    def __init__(self, sentinel: Path) -> None:
        self.command = f"touch {sentinel}"

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def payloads(sentinel: Path) -> list[bytes]:
    """Files that execute something in a reader that trusts them: pickles, checkpoints, arrays of objects, YAML."""
    attack = Payload(sentinel)
    files = [pickle.dumps(attack, protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    for is_zip in (True, False):
        for content in (attack, {"state_dict": {"weight": attack}}, [1, attack]):
            torch.save(content, buffer := io.BytesIO(), _use_new_zipfile_serialization=is_zip)
            files.append(buffer.getvalue())
    objects = np.array([attack], dtype=object)
    np.save(buffer := io.BytesIO(), objects, allow_pickle=True)
    files.append(buffer.getvalue())
    np.savez(buffer := io.BytesIO(), objects, allow_pickle=True)
    files.append(buffer.getvalue())
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        archive.writestr(f"../../..{sentinel}", "outside of the folder")
    files.append(buffer.getvalue())
    files.append(f'!!python/object/apply:os.system ["{attack.command}"]\n'.encode())
    return files
