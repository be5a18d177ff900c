#!/bin/sh
# The tree's own rules, on every tracked or new file: no path of somebody's machine and no registry's host, no
# source file of more than 600 lines, an opening that says what the file is for, no work left to do.
#
# A file that must be longer is listed as `PATH LINES` in scripts/long-files.txt; the number may only fall.
set -u
cd "$(dirname "$0")/.." || exit 1
LINES_MAX=600
OPENING_MAX=15
faults=0
fault() {
    echo "$1: $2"
    faults=$((faults + 1))
}

files=$(git ls-files --cached --others --exclude-standard | sort -u | while read -r f; do [ -f "$f" ] && echo "$f"; done)

# Cargo.lock names the registry by itself, and the licences their own pages. The patterns do not match themselves.
prose=$(printf '%s\n' "$files" | grep -v -e '^Cargo[.]lock$' -e '/Cargo[.]lock$' -e '^LICENSE-' -e '[.]npz$' -e '[.]onnx$')
check_absent() {
    hits=$(printf '%s\n' "$prose" | tr '\n' '\0' | xargs -0 grep -nIE -e "$1" /dev/null)
    [ -z "$hits" ] || fault "$2" "
$hits"
}
check_absent '(^|[^A-Za-z0-9_.$})-])/(work|root)/' "a path of one machine"
check_absent '(pypi|pythonhosted|npmjs|crates)[.](org|io/)|(index|static)[.]crates[.]io|deb[.]debian[.]org|proxy[.]golang[.]org' "a registry's host"
check_absent '(TO[D]O|FIX[M]E|XX[X]):?( |$)' "work left to do"
check_absent '[Ii]ssue #?[0-9]+' "an issue's number (say why instead)"

printf '%s\n' "$files" | grep -E '[.](rs|c|h)$' >"${TMPDIR:-/tmp}/inferd-tree.$$"
trap 'rm -f "${TMPDIR:-/tmp}/inferd-tree.$$"' EXIT
while read -r file; do
    lines=$(wc -l <"$file")
    max=$(sed -n "s|^$file ||p" scripts/long-files.txt 2>/dev/null)
    if [ "$lines" -gt "${max:-$LINES_MAX}" ]; then
        fault "$file" "$lines lines, more than ${max:-$LINES_MAX}: two ideas in one file"
    elif [ -n "$max" ] && [ "$lines" -lt "$max" ]; then
        fault "$file" "has $lines lines now: lower (or, below $LINES_MAX, remove) its number in scripts/long-files.txt"
    fi
    case $file in
    *.rs)
        opening=$(awk '!/^\/\/!/ { exit } { n++ } END { print n + 0 }' "$file")
        [ "$opening" -gt 0 ] || fault "$file" "no //! opening: what it is, why, what always holds, what it leaves to others"
        [ "$opening" -le "$OPENING_MAX" ] || fault "$file" "an opening of $opening lines, more than $OPENING_MAX"
        ;;
    *)
        case $(head -c 2 "$file") in
        '/*' | '//') ;;
        *) fault "$file" "no opening comment" ;;
        esac
        ;;
    esac
done <"${TMPDIR:-/tmp}/inferd-tree.$$"

for file in $(printf '%s\n' "$files" | grep -E '[.](sh|py)$|^[.]ci/run$'); do
    # The first line, or what follows `#!`.
    case $(sed -n '/^#!/!{s/^\(#\|"""\).*/said/p;q;}' "$file") in
    said) ;;
    *) fault "$file" "its opening does not say what it is for" ;;
    esac
done

if [ "$faults" -gt 0 ]; then
    echo "check_tree: $faults faults"
    exit 1
fi
echo "check_tree: $(printf '%s\n' "$files" | wc -l) files, no fault"
