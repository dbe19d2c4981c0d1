"""Refusal of pickles that would expand to more than they hold: a few hundred bytes can take hours to unpickle.

A tuple of ten references to a tuple of ten references ... has 10^n elements when it is hashed as the key of a
dictionary, or walked. The instructions are followed here without building anything.
"""

from __future__ import annotations

import pickle
import pickletools
from typing import IO, Any

LARGEST = 10_000_000  # elements, counted as often as they are reached; checkpoints have some 100 per tensor
_GROWING = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")
_MARK = pickletools.markobject

Node = list[Any]  # the nodes that an object refers to


def check_expansion(file: IO[bytes]) -> None:
    """Follow the instructions of one pickle, and leave ``file`` behind it.

    Raises:
        pickle.UnpicklingError: its objects would have more than LARGEST elements.
    """
    stack: list[Any] = []  # a node per object, or the mark
    memo: dict[int, Node] = {}
    top: Node = []
    argument: Any
    for opcode, argument, _ in pickletools.genops(file):
        name = opcode.name
        if name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
            memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "POP":
            stack.pop()
        elif name == "STOP":
            top = stack.pop()
        else:
            taken = _take(opcode, stack)
            if name in _GROWING:
                top, *taken = taken
                top.extend(taken)
                stack.append(top)
            else:
                stack.extend(taken if taken else [] for _ in opcode.stack_after)
    if _elements(top) > LARGEST:
        raise pickle.UnpicklingError(f"objects of more than {LARGEST} elements")


def _take(opcode: pickletools.OpcodeInfo, stack: list[Any]) -> Node:
    """Remove what an instruction takes from the stack, in its order; the mark is no part of it."""
    taken: Node = []
    before = opcode.stack_before
    count = len(before)
    if _MARK in before:
        while (item := stack.pop()) is not _MARK:
            taken.append(item)
        count = before.index(_MARK)
    for _ in range(count):
        taken.append(stack.pop())
    return taken[::-1]


def _elements(top: Node) -> int:
    """Number of elements that are reached from an object, at most LARGEST + 1; a cycle is followed once."""
    sizes: dict[int, int] = {}
    path: list[tuple[Node, bool]] = [(top, False)]
    while path:
        node, is_counted = path.pop()
        if is_counted:
            sizes[id(node)] = min(1 + sum(sizes[id(child)] for child in node), LARGEST + 1)
        elif id(node) not in sizes:
            sizes[id(node)] = 1  # of a cycle
            path.append((node, True))
            path.extend((child, False) for child in node)
    return sizes[id(top)]
