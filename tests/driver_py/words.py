#!/usr/bin/env python3
"""Takes the words of a command apart; a line changes nothing before its keys are all understood."""
from __future__ import annotations

import math
import re
from typing import Dict, Optional, Sequence

U64_MAX = 2**64 - 1


class Usage(Exception):
    """The command is not DRIVER.md's."""


class Keys:
    """The `key=value` words of a command, taken out one by one; what is left over is a mistake."""

    def __init__(self, words: str) -> None:
        self.left: Dict[str, str] = {}
        for word in words.split():
            key, equals, value = word.partition("=")
            if not equals:
                raise Usage("a word is not key=value")
            self.left[key] = value

    def text(self, key: str) -> Optional[str]:
        return self.left.pop(key, None)

    def optional(self, key: str) -> Optional[int]:
        text = self.text(key)
        if text is None:
            return None
        if not re.fullmatch(r"\d+", text) or int(text) > U64_MAX:
            raise Usage(f"{key} is not an unsigned number")
        return int(text)

    def number(self, key: str, otherwise: int) -> int:
        value = self.optional(key)
        return otherwise if value is None else value

    def need(self, key: str) -> int:
        value = self.optional(key)
        if value is None:
            raise Usage(f"{key} is missing")
        return value

    def signed(self, key: str) -> Optional[int]:
        text = self.text(key)
        if text is None:
            return None
        try:
            return int(text)
        except ValueError:
            raise Usage(f"{key} is not a number") from None

    def seconds(self, key: str) -> Optional[float]:
        text = self.text(key)
        try:
            value = None if text is None else float(text)
        except ValueError:
            value = math.nan
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise Usage(f"{key} is not a number of seconds")
        return value

    def seconds_of_us(self, key: str) -> float:
        """Microseconds as seconds; for ever if the key is absent."""
        value = self.optional(key)
        return math.inf if value is None else value * 1e-6

    def one_of(self, key: str, choices: Sequence[str], otherwise: str) -> str:
        text = self.text(key)
        if text is not None and text not in choices:
            raise Usage(f"{key} is one of {', '.join(choices)}")
        return otherwise if text is None else text

    def end(self) -> None:
        if self.left:
            raise Usage(f"unknown key {next(iter(self.left))}")
