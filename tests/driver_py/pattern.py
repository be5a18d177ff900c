#!/usr/bin/env python3
"""The fill pattern and the hash of DRIVER.md, in NumPy."""
from __future__ import annotations

from typing import Any, Dict

import numpy as np

U64 = np.uint64
_MASK = U64(0x3F3F3F3F3F3F3F3F)
_ADD, _MUL1, _MUL2 = U64(0x9E3779B97F4A7C15), U64(0xBF58476D1CE4E5B9), U64(0x94D049BB133111EB)
_S30, _S27, _S31 = U64(30), U64(27), U64(31)
#: Word numbers by their count: made once, so that a loop makes nothing that lasts.
_counting: Dict[int, Any] = {}


def fill(size: int, seed: int) -> "np.ndarray[Any, Any]":
    """`size` bytes of the pattern; byte i is byte i % 8 of mix(seed + i / 8), each below 0x40."""
    words = (size + 7) // 8
    counting = _counting.get(words)
    if counting is None:
        counting = _counting[words] = np.arange(words, dtype=U64) + _ADD
    x = counting + U64(seed & 0xFFFFFFFFFFFFFFFF)
    x = (x ^ (x >> _S30)) * _MUL1
    x = (x ^ (x >> _S27)) * _MUL2
    x ^= x >> _S31
    x &= _MASK
    return x.view(np.uint8)[:size]


FNV_START = 0xCBF29CE484222325


def fnv1a(data: bytes, h: int = FNV_START) -> int:
    for byte in data:
        h = ((h ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return h


assert fill(8, 1).tobytes().hex() == "011c02092c2d0a11", "the check of DRIVER.md"
