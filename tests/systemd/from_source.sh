#!/bin/bash
# Runs in a fresh box, as root: follows the README's Install section word for word, from source and for one user.
#
# What `make install` puts below / lies in /box/installed already, for there is no compiler here: the block's `make`
# lines copy it. Every other line runs as it stands there; `sudo` is a function, since this shell is root's already.
# The block for packages comes second, over the same machine, after `make uninstall`'s work was done.
set -u
FAILED=0
said() { if [ "$2" = 0 ]; then echo "ok $1"; else echo "FAILED $1: $3"; FAILED=$((FAILED + 1)); fi; }
block() { awk -v name="@$1" '/^@/ { inside = ($0 == name); next } inside' /box/readme; }
sudo() { "$@"; }
make() { [ "${1:-}" != install ] || cp -a /box/installed/. /; }
export USER=other

# A robot's user, and an operator's: `$USER` in the README.
follow() { # NAME: runs the block, stops at the first line that fails
    local line
    block "$1" >/tmp/block
    [ -s /tmp/block ] || { said "the_readme_s_block_$1_is_there" 1 "no block $1 in the Install section"; return 1; }
    while IFS= read -r line; do
        eval "$line" >/tmp/out 2>&1 || { said "the_readme_s_block_$1" 1 "\`$line\`: $(tail -n 3 /tmp/out | tr '\n' ' ')"; return 1; }
    done </tmp/block
    said "the_readme_s_block_$1" 0
}
serve() { # a model for whoever follows the README: the echo backend with one input
    mkdir -p /var/lib/inferd/models/m /etc/inferd/inferd.d
    printf 'backend = "echo"\n[inputs.x]\ndtype = "f32"\nshape = [4]\n[outputs.y]\ndtype = "f32"\nshape = [4]\n' >/var/lib/inferd/models/m/model.toml
    printf '[models.m]\npath = "/var/lib/inferd/models/m"\n' >/etc/inferd/inferd.d/m.toml
    systemctl reload inferd && for _ in $(seq 100); do inferctl models m 2>/dev/null | grep -q live && return 0; sleep 0.1; done
    return 1
}
infers() { out=$(runuser -u other -- robot once m 2>&1); }

follow from-source && {
    serve && infers; said a_robot_infers_after_an_installation_from_source $? "${out:-no model}"
    inferctl doctor >/tmp/out; said the_doctor_finds_the_installation_sound $? "$(cat /tmp/out)"
    systemctl disable --now inferd 2>/dev/null
}
(cd /box/installed && find . ! -type d -printf '/%P\n') | grep -v '^/etc/inferd/' | xargs rm -f
hash -r   # the shell remembers where inferctl was
rm -rf /etc/inferd /var/lib/inferd /run/inferd; systemctl daemon-reload; groupdel inferd-admin; userdel inferd; groupdel inferd 2>/dev/null

cd /box/debs && follow packages && {
    serve && infers; said a_robot_infers_after_an_installation_from_packages $? "${out:-no model}"
    inferctl doctor >/tmp/out; said the_doctor_finds_the_packages_sound $? "$(cat /tmp/out)"
    follow profile && { systemctl is-active --quiet inferd; said the_service_runs_with_a_profile $? "$(systemctl status inferd --no-pager 2>&1 | tail -n 5)"; }
}
exit "$FAILED"
