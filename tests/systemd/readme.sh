#!/bin/sh
# Takes the README at its word: prints the shell commands of its Install section. usage: readme.sh README.md
#
# Each fenced block begins with a comment line `# NAME: ...`; a line `@NAME` precedes its commands in what is printed, so
# that a box can run one block after the other exactly as they stand there.
set -eu
awk '
    /^## /   { inside = ($0 == "## Install") }
    /^```/   { fenced = !fenced; first = 1; next }
    inside && fenced {
        if (first && match($0, /^# [a-z-]+:/)) print "@" substr($0, 3, RLENGTH - 3)
        else print
        first = 0
    }' "$1" | grep .
