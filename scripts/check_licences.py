#!/usr/bin/env python3
"""Checks every crate of the lock file against deny.toml: its licence, the bans, its source.

What cargo-deny checks, less the duplicates and advisories, from `cargo metadata` alone: for machines that have
no cargo-deny. An SPDX expression passes when one of its OR branches has all its AND terms allowed.
"""
import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def deny_lists() -> tuple[set[str], set[str]]:
    """The allowed licences and the banned crates; read without a TOML parser, which python3 has only from 3.11."""
    text = re.sub(r"(?m)^\s*#.*$", "", (ROOT / "deny.toml").read_text())
    licences = re.search(r"(?s)\[licenses\].*?allow = \[(.*?)\]", text)
    bans = re.search(r"(?s)\[bans\].*?\bdeny = \[(.*?)\n\]", text)
    if not licences or not bans:
        sys.exit("check_licences: deny.toml has no [licenses] allow or no [bans] deny list")
    return set(re.findall(r'"([^"]+)"', licences[1])), set(re.findall(r'crate = "([^"]+)"', bans[1]))


def is_allowed(expression: str, allowed: set[str]) -> bool:
    """Whether a choice of OR branches leaves only allowed terms. Slashes are the old spelling of OR."""
    tokens = re.findall(r"\(|\)|[^\s()]+", expression.replace("/", " OR "))

    def terms() -> bool:
        ok = factor()
        while tokens and tokens[0] == "AND":
            tokens.pop(0)
            ok = factor() and ok
        return ok

    def choice() -> bool:
        ok = terms()
        while tokens and tokens[0] == "OR":
            tokens.pop(0)
            ok = terms() or ok
        return ok

    def factor() -> bool:
        token = tokens.pop(0)
        if token == "(":
            ok = choice()
            tokens.pop(0)
            return ok
        if tokens and tokens[0] == "WITH":
            tokens.pop(0)
            return f"{token} WITH {tokens.pop(0)}" in allowed or token in allowed
        return token in allowed

    return choice() and not tokens


def main() -> None:
    allowed, banned = deny_lists()
    metadata = subprocess.run(
        [os.environ.get("CARGO", "cargo"), "metadata", "--format-version", "1", "--locked", "--all-features"],
        cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if metadata.returncode != 0:
        sys.exit("check_licences: cargo metadata failed, as it says above")
    packages = json.loads(metadata.stdout)["packages"]
    faults = []
    for package in packages:
        name = f"{package['name']} {package['version']}"
        licence = package.get("license")
        if not licence:
            faults.append(f"{name}: no licence expression in its manifest; read its licence file, then replace the crate")
        elif not is_allowed(licence, allowed):
            faults.append(f"{name}: licence {licence} is not in deny.toml's list")
        if package["name"] in banned:
            faults.append(f"{name}: banned by deny.toml, which says why")
        source = package.get("source")
        if source is not None and not source.endswith("/crates.io-index"):
            faults.append(f"{name}: comes from {source}, not from the registry")
    if faults:
        sys.exit("check_licences: " + "\ncheck_licences: ".join(faults))
    print(f"check_licences: {len(packages)} crates, licences, bans and sources are as deny.toml says")


if __name__ == "__main__":
    main()
