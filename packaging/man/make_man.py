#!/usr/bin/env python3
"""Writes the manual pages that are not the command line's own: sections 3, 5, 7 and 8.

usage: make_man.py --inferd BINARY --version X.Y.Z --out DIR      (DIR gets man3, man5, man7, man8)

Nothing is said twice: section 3 comes from the comments of include/inferd.h, inferd.toml(5) is docs/configuration.md,
and the pages beside this file may name `@help@` (what `inferd --help` prints) and `@include FILE@` or
`@include FILE # HEADING@`. Understood of Markdown is what these files use: headings, paragraphs, lists, fences, tables.
"""
import argparse
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    ("inferd", 8): "inferd.8.md",
    ("inferd", 7): "inferd.7.md",
    ("inferd.toml", 5): "inferd.toml.5.md",
}


def escape(text):
    """Text as roff: backslashes, hyphens that are options' or names', and a leading dot."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + text if text[:1] in (".", "'") else text


def inline(text):
    """Bold, code and links of one line."""
    out, rest = "", text.replace("\\|", "|")
    pattern = re.compile(r"`([^`]+)`|\*\*([^*]+)\*\*|\[([^\]]+)\]\(([^)]+)\)")
    while found := pattern.search(rest):
        out += escape(rest[: found.start()]) if not out else escape(rest[: found.start()]).removeprefix("\\&")
        code, bold, label, target = found.groups()
        if code or bold:
            out += "\\fB" + escape(code or bold).removeprefix("\\&") + "\\fR"
        elif target.startswith("http"):
            out += f"{escape(label)} <{escape(target)}>"
        else:
            out += escape(label)
        rest = rest[found.end():]
    tail = escape(rest)
    return out + (tail.removeprefix("\\&") if out else tail)


def table(rows):
    """A table becomes a list: first cell in bold, middle cells named after their columns, last cell as the text."""
    cells = [[c.strip() for c in re.split(r"(?<!\\)\|", row.strip().strip("|"))] for row in rows]
    # Which tests hold a sentence is for those who change it, not for a manual.
    shown = [at for at, name in enumerate(cells[0]) if name != "held by"]
    cells = [[row[at] for at in shown] for row in cells]
    header, body = cells[0], cells[2:]
    out = []
    for row in body:
        out += [".TP", inline(row[0]) if "`" in row[0] else f"\\fB{escape(row[0])}\\fR"]
        middle = [f"{name}: {value}" for name, value in zip(header[1:-1], row[1:-1]) if value]
        text = row[-1] + (f" ({'; '.join(middle)})" if middle and row[-1] else "; ".join(middle) if not row[-1] else "")
        out.append(inline(text or "-"))
    return out + [".PP"]


def roff(markdown):
    """The body of a page."""
    out, lines, at = [], markdown.splitlines(), 0
    paragraph = []

    def flush():
        if paragraph:
            out.extend([".PP", inline(" ".join(paragraph))])
            paragraph.clear()

    while at < len(lines):
        line = lines[at]
        if line.startswith("```"):
            flush()
            out.extend([".PP", ".RS 4", ".nf"])
            at += 1
            while not lines[at].startswith("```"):
                out.append(escape(lines[at]) or "\\&")
                at += 1
            out.extend([".fi", ".RE"])
        elif heading := re.match(r"(#+) (.*)", line):
            flush()
            text = heading[2].replace("`", "")
            out.append(f".SH {escape(text.upper())}" if len(heading[1]) <= 2 else f".SS {escape(text)}")
        elif line.startswith("|"):
            flush()
            begin = at
            while at < len(lines) and lines[at].startswith("|"):
                at += 1
            out.extend(table(lines[begin:at]))
            continue
        elif item := re.match(r"(?:[-*]|(\d+)\.) +(.*)", line):
            flush()
            text = [item[2]]
            while at + 1 < len(lines) and lines[at + 1].startswith("  "):
                at += 1
                text.append(lines[at].strip())
            mark = f"{item[1]}." if item[1] else "\\(bu"
            out.extend([f".IP {mark} 4", inline(" ".join(text))])
        elif not line.strip():
            flush()
        else:
            paragraph.append(line.strip())
        at += 1
    flush()
    return "\n".join(out) + "\n"


def head(name, section, version, short):
    title = f'.TH {name.upper()} {section} "" "inferd {version}" "inferd"'
    return f"{title}\n.SH NAME\n{escape(name)} \\- {escape(short)}\n"


def section_of(text, heading):
    """The part of a Markdown file below one heading, without it."""
    found = re.search(rf"^(#+) {re.escape(heading)}\n(.*?)(?=^#{{1,2}} |\Z)", text, re.S | re.M)
    if not found:
        sys.exit(f"make_man: no heading {heading!r}")
    return found[2]


def options(inferd):
    """The options that the program prints, as a list."""
    text = subprocess.run([inferd, "--help"], check=True, capture_output=True, text=True).stdout
    out = []
    for option, meaning in re.findall(r"^ {2,6}(-[^\n]*?) {2,}(\S[^\n]*)$", text.split("Options:")[1], re.M):
        out += [".TP", f"\\fB{escape(option)}\\fR", escape(meaning)]
    if len(out) < 9:
        sys.exit(f"make_man: cannot read what {inferd} --help prints")
    return "\n".join(out) + "\n"


def page(source, inferd):
    """A page beside this file: its first line is the one-line description."""
    short, _, body = (Path(__file__).parent / source).read_text().partition("\n")

    def include(found):
        path, _, heading = found[1].partition(" # ")
        text = (ROOT / path.strip()).read_text()
        return section_of(text, heading.strip()) if heading else text.split("\n", 1)[1]

    body = re.sub(r"@include ([^@]+)@", include, body)
    body = re.sub(r"\n +Held by:(\n +`[^\n]*)+", "", body)
    parts = body.split("@help@")
    return short, options(inferd).join(roff(part) for part in parts)


# --- Section 3 ---------------------------------------------------------------------------------------------------

FIELD = re.compile(r"(Arguments|Blocks|Threads|Returns|Then|Units|Errors)(?::| {2,}| +)(.*)")


def text_of(comment):
    """A comment without its stars, line by line."""
    lines = comment.strip().removesuffix("*/").rstrip().splitlines()
    lines = [re.sub(r"^ \* ?", "", line).rstrip() for line in lines]
    lines[0] = lines[0].removeprefix("/*").strip()
    return lines


def described(lines):
    """A comment as roff: its named parts become a list, indented lines stay as they are."""
    out, paragraph = [], []

    def flush():
        if paragraph:
            out.extend([".PP", inline(" ".join(paragraph))])
            paragraph.clear()

    at = 0
    while at < len(lines):
        line = lines[at]
        field = FIELD.match(line)
        if field and (line[len(field[1])] in " :"):
            flush()
            text = [field[2].strip()]
            while at + 1 < len(lines) and lines[at + 1].startswith("      "):
                at += 1
                text.append(lines[at].strip())
            out.extend([".TP", f"\\fB{field[1]}\\fR", inline(" ".join(text))])
        elif line.startswith("    "):
            flush()
            out.extend([".PP", ".nf", escape(line), ".fi"])
        elif not line.strip():
            flush()
        else:
            paragraph.append(line.strip())
        at += 1
    flush()
    return "\n".join(out) + "\n"


def functions(header):
    """(comment, declarations) of every function: a comment covers what follows it up to the next blank line."""
    pattern = re.compile(r"(/\*(?:(?!\*/).)*\*/)\n((?:(?:INFERD_API|static inline)[^\n]*(?:\n(?!\n)[^\n]*)*\n?)+)", re.S)
    for comment, declarations in pattern.findall(header):
        inline_body = re.sub(r"\n\{.*?\n\}", ";", declarations, flags=re.S)
        found = re.findall(r"(?:INFERD_API|static inline) [^;{]*?(\w+)\([^;]*?\);", inline_body, re.S)
        prototypes = re.findall(r"(?:INFERD_API|static inline) [^;]*;", inline_body, re.S)
        if found:
            yield comment, found, [re.sub(r"INFERD_API |INFERD_CHECK |static inline ", "", p) for p in prototypes]


def section_3(header, version, out):
    """A page per function, and inferd.h(3) with what holds for all of them."""
    opening = text_of(re.match(r"/\*.*?\*/", header, re.S)[0])
    words = text_of(re.search(r"/\*\n \* Words.*?\*/", header, re.S)[0])
    structs = re.findall(r"(?:/\*(?:(?!\*/).)*\*/\n)?(?:struct|enum) \w+ \{.*?\n\};", header, re.S)
    text = head("inferd.h", 3, version, "the C client of inferd") + ".SH SYNOPSIS\n.nf\n#include <inferd.h>\n.fi\n"
    text += "cc robot.c $(pkg\\-config \\-\\-cflags \\-\\-libs inferd)\n.SH DESCRIPTION\n" + described(opening[2:])
    text += ".nf\n" + "\n".join(escape(line) or "\\&" for line in words if line.strip() != "Words") + "\n.fi\n"
    text += ".SH TYPES\n.nf\n" + "\n\n".join("\n".join(escape(line) for line in s.splitlines()) for s in structs) + "\n.fi\n"
    names = []
    for comment, found, prototypes in functions(header):
        names += found
        lines = [line for line in text_of(comment)]
        while lines and not lines[0]:
            lines.pop(0)
        whole = " ".join(lines).strip()
        short = re.split(r"[.:;](?: |$)", whole, maxsplit=1)[0]
        short = short[:1].lower() + short[1:]
        short = short if len(short) < 90 else short[:87].rsplit(" ", 1)[0] + " ..."
        body = head(", ".join(found), 3, version, short).replace(f".TH {', '.join(found).upper()}", f".TH {found[0].upper()}")
        shown = "\n.sp 0.4\n".join("\n".join(escape(line) for line in p.splitlines()) for p in prototypes)
        body += f".SH SYNOPSIS\n.nf\n#include <inferd.h>\n.sp 0.4\n{shown}\n.fi\n.SH DESCRIPTION\n{described(lines)}"
        body += ".SH SEE ALSO\n.BR inferd.h (3),\n.BR inferd (7)\n"
        (out / f"{found[0]}.3").write_text(body)
        for alias in found[1:]:
            (out / f"{alias}.3").write_text(f".so man3/{found[0]}.3\n")
    missing = set(re.findall(r"INFERD_API[^;]*?(inferd_\w+)\(", header)) - set(names)
    if missing:
        sys.exit(f"make_man: no page for {', '.join(sorted(missing))}")
    refs = ",\n".join(f".BR {name} (3)" for name in sorted(names)).replace("(3),", "(3),")
    (out / "inferd.h.3").write_text(text + ".SH SEE ALSO\n" + refs + ",\n.BR inferd (7)\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inferd", required=True)
    parser.add_argument("--version", required=True)
    parser.add_argument("--out", required=True, type=Path)
    args = parser.parse_args()
    for section in (3, 5, 7, 8):
        (args.out / f"man{section}").mkdir(parents=True, exist_ok=True)
    for (name, section), source in PAGES.items():
        short, body = page(source, args.inferd)
        (args.out / f"man{section}" / f"{name}.{section}").write_text(head(name, section, args.version, short) + body)
    section_3((ROOT / "include/inferd.h").read_text(), args.version, args.out / "man3")


if __name__ == "__main__":
    main()
