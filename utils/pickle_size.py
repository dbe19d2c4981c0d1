"""Refusal of pickles that would expand to more than they hold: a few hundred bytes can take hours to unpickle.

A tuple of ten references to a tuple of ten references ... has 10^n elements when it is hashed as the key of a
dictionary, or walked. The instructions are followed here without building anything. Every checkpoint is checked, and
has some 20 instructions per tensor: the loop looks each of them up in a table.
"""

from __future__ import annotations

import mmap
import pickle
import pickletools
from typing import NamedTuple, TypeAlias

LARGEST = 10_000_000  # elements, counted as often as they are reached; checkpoints have some 100 per tensor

Node: TypeAlias = "list[Node]"  # the nodes that an object refers to
_VALUE: Node = []  # any number, text or bytes: nothing can be added to it
# Kinds of instructions.
_PUSH, _PUT, _GET, _MAKE, _GROW, _MARK, _DUP, _POP, _DROP, _STOP = range(10)
_KINDS = {
    **dict.fromkeys(("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"), _PUT),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _GET),
    **dict.fromkeys(("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"), _GROW),
    **dict.fromkeys(("PROTO", "FRAME", "POP_MARK"), _DROP),
    **{"MARK": _MARK, "DUP": _DUP, "POP": _POP, "STOP": _STOP},
}
_VALUE_NAMES = {"int", "int_or_bool", "bool", "float", "str", "bytes", "bytes_or_str", "None"}


class _Instruction(NamedTuple):
    kind: int
    size: int  # bytes of the argument
    prefix: int  # bytes of the length in front of an argument of any size
    lines: int  # of a text argument
    takes_mark: bool  # takes everything above the mark
    below: int  # objects taken below the mark, or from the top


def _instruction(opcode: pickletools.OpcodeInfo) -> _Instruction:
    before, after = [x.name for x in opcode.stack_before], [x.name for x in opcode.stack_after]
    size, prefix, lines = opcode.arg.n if opcode.arg else 0, 0, 0
    if size == pickletools.UP_TO_NEWLINE:
        size, lines = 0, 2 if opcode.name in ("GLOBAL", "INST") else 1
    elif size < 0:
        prefixes = {pickletools.TAKEN_FROM_ARGUMENT1: 1, pickletools.TAKEN_FROM_ARGUMENT8U: 8}
        size, prefix = 0, prefixes.get(size, 4)
    is_value = not before and set(after) <= _VALUE_NAMES
    kind = _KINDS.get(opcode.name, _PUSH if is_value else _MAKE)
    takes_mark = "mark" in before
    return _Instruction(kind, size, prefix, lines, takes_mark, before.index("mark") if takes_mark else len(before))


_INSTRUCTIONS = {ord(opcode.code): _instruction(opcode) for opcode in pickletools.opcodes}


def check_expansion(content: bytes | mmap.mmap, start: int = 0) -> int:
    """Follow the instructions of the pickle that begins at ``start``.

    Returns:
        Position behind it.

    Raises:
        pickle.UnpicklingError: its objects would have more than LARGEST elements.
        LookupError, ValueError: it is cut off, or no pickle.
    """
    stack: list[Node] = []
    marks: list[int] = []  # heights of the stack
    memo: dict[int, Node] = {}
    end = start
    while True:
        kind, size, prefix, lines, takes_mark, below = _INSTRUCTIONS[content[end]]
        begin = end + 1
        end = begin + size
        if prefix:
            end = begin + prefix + int.from_bytes(content[begin : begin + prefix], "little")
        elif lines:
            end = _behind_lines(content, begin, lines)
        if kind == _PUSH:
            stack.append(_VALUE)
        elif kind in (_PUT, _GET):
            argument = content[begin:end]
            key = int(argument) if lines else int.from_bytes(argument, "little") if size else len(memo)
            if kind == _PUT:
                memo[key] = stack[-1]
            else:
                stack.append(memo[key])
        elif kind == _MARK:
            marks.append(len(stack))
        elif kind == _STOP:
            break
        elif kind == _DUP:
            stack.append(stack[-1])
        elif kind == _POP and marks and marks[-1] == len(stack):
            marks.pop()
        else:
            height = (marks.pop() if takes_mark else len(stack)) - below
            taken = stack[height:]
            del stack[height:]
            if kind == _GROW:
                stack.append(taken[0])
                if taken[0] is not _VALUE:
                    taken[0].extend(taken[1:])
            elif kind == _MAKE:
                stack.append(taken)
    if _elements(stack.pop()) > LARGEST:
        raise pickle.UnpicklingError(f"objects of more than {LARGEST} elements")
    return end


def _behind_lines(content: bytes | mmap.mmap, position: int, lines: int) -> int:
    for _ in range(lines):
        position = content.find(b"\n", position) + 1
        if not position:
            raise ValueError("a line without an end")
    return position


def _elements(top: Node) -> int:
    """Number of elements that are reached from an object, at most LARGEST + 1; a cycle is followed once."""
    sizes: dict[int, int] = {id(_VALUE): 1}
    path: list[Node | None] = [top]  # None: the children of the node below it are counted
    while path:
        node = path.pop()
        if node is None:
            node = path.pop()
            assert node is not None
            sizes[id(node)] = min(1 + sum([sizes[id(child)] for child in node]), LARGEST + 1)
        elif id(node) not in sizes:
            sizes[id(node)] = 1  # of a cycle
            path += (node, None)
            path += [child for child in node if id(child) not in sizes]
    return sizes[id(top)]
