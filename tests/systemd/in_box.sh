#!/bin/bash
# Runs in the box, as root, on a real systemd: installs the packages and uses inferd as its users would.
#
# usage: in_box.sh ROUNDS    (ROUNDS: restarts under load)
# Prints `ok NAME`, `FAILED NAME: why` and `FIGURE name value` lines; the scenarios share one machine and run in this
# order. run.sh lays out /box/debs, /box/upgrade, /usr/local/bin/robot and, perhaps, /box/models.
set -u
ROUNDS=${1:-20}
FAILED=0
here=
say() { printf '%s\n' "$*"; }
# The rest of a scenario means nothing once something in it went wrong.
fail() { say "FAILED $here: $*"; exit 1; }
must() { "$@" >/tmp/out 2>&1 || fail "\`$*\` exited $?: $(tail -n 5 /tmp/out | tr '\n' ' ')"; }
equal() { [ "$1" = "$2" ] || fail "$3: expected \"$2\", found \"$1\""; }
holds() { case $1 in *"$2"*) ;; *) fail "$3: \"$2\" is not in \"$1\"" ;; esac; }
# Waits until a command succeeds: never for a fixed time, and not for ever.
await() { local what=$1 i; shift; for i in $(seq 300); do "$@" >/dev/null 2>&1 && return 0; sleep 0.1; done; fail "waited 30 s for $what; the service: $(systemctl show -P Result inferd), $(systemctl show -P StatusText inferd)"; }
scenario() {
    here=$1
    if ( "$1" ); then say "ok $1"; else
        FAILED=$((FAILED + 1))
        journalctl -u inferd -u inferd-attach.socket -u inferd-control.socket -n 40 -o short-precise --no-pager
        # Whatever it left behind, the next one begins with a service that runs.
        pkill -x robot
        rm -f /etc/systemd/system/inferd.service.d/*.conf; systemctl daemon-reload
        [ ! -d /var/lib/inferd/models/slow ] || write_models
        systemctl reset-failed inferd.service inferd-attach.socket inferd-control.socket 2>/dev/null
        systemctl restart inferd
    fi
}
show() { systemctl show -P "$1" "${2:-inferd.service}"; }
main_pid() { show MainPID; }
# `other` is a robot (group inferd), `tester` is nobody, `oper` commands (group inferd-admin).
robot() { runuser -u other -- robot "$@"; }
operator() { runuser -u oper -- inferctl "$@"; }
number() { sed -n "s/.*\"$2\": \([0-9]*\).*/\1/p" "$1" | head -n 1; }   # number FILE KEY: 0 if absent
count() { local n; n=$(number "$1" "$2"); echo "${n:-0}"; }
model() { operator models "$1" --json; }
field() { sed -n "s/^ *\"$1\": \"\{0,1\}\([^\",]*\)\"\{0,1\},\{0,1\}$/\1/p" | head -n 1; }
live() { [ "$(model "$1" | field state)" = live ]; }
answered() { local n; n=$(operator stats "$1" --json | field ok); [ "${n:-0}" -gt 0 ]; }   # since its worker began
config() { cat >/etc/inferd/inferd.d/models.toml; }
drop_in() { mkdir -p /etc/systemd/system/inferd.service.d; cat >"/etc/systemd/system/inferd.service.d/test-$1.conf"; must systemctl daemon-reload; }
drop_out() { rm -f "/etc/systemd/system/inferd.service.d/test-$1.conf"; must systemctl daemon-reload; }

write_models() {
    config <<'END'
[models.counter]
path = "/var/lib/inferd/models/counter"

[models.slow]
path = "/var/lib/inferd/models/slow"
END
    if [ -e /box/models ]; then
        cat >>/etc/inferd/inferd.d/models.toml <<'END'

[models.go2]
path = "/var/lib/inferd/models/go2.onnx"
END
    fi
}

# --- Scenarios ----------------------------------------------------------------------------------------------------------

the_packages_install_enable_and_start_the_service() {
    must dpkg -i /box/debs/*.deb
    equal "$(systemctl is-enabled inferd.service inferd-attach.socket inferd-control.socket | sort -u)" enabled "enabled"
    equal "$(systemctl is-active inferd.service inferd-attach.socket inferd-control.socket | sort -u)" active "active"
    holds "$(show StatusText)" "0 of 0 models live" "status text"
    equal "$(stat -c '%U:%G %a' /run/inferd/attach.sock)" "inferd:inferd 660" attach.sock
    equal "$(stat -c '%U:%G %a' /run/inferd/control.sock)" "inferd:inferd-admin 660" control.sock
    equal "$(stat -c '%U:%G %a' /var/lib/inferd/models)" "inferd:inferd-admin 2775" models
    equal "$(stat -c '%U:%G %a' /etc/inferd/keys)" "root:root 700" keys
}

the_daemon_and_its_workers_have_no_privileges() {
    local pid task; pid=$(main_pid)
    for task in "$pid" $(cat "/proc/$pid/task/$pid/children"); do
        equal "$(stat -c %U "/proc/$task")" inferd "user of $(cat "/proc/$task/comm")"
        equal "$(sed -n 's/^CapEff:\s*0*//p; s/^CapPrm:\s*0*//p; s/^CapBnd:\s*0*//p' "/proc/$task/status" | tr -d '\n')" "" "capabilities"
        equal "$(sed -n 's/^NoNewPrivs:\s*//p; s/^Seccomp:\s*//p' "/proc/$task/status" | tr '\n' ' ')" "1 2 " "no_new_privs and seccomp"
    done
}

an_operator_without_root_adds_models_and_a_reload_serves_them() {
    local before; before=$(main_pid)
    runuser -u oper -- bash -c '
        umask 022; cd /var/lib/inferd/models && mkdir counter slow
        printf "backend = \"echo\"\n[inputs.x]\ndtype = \"f32\"\nshape = [1, 45]\n[inputs.h]\ndtype = \"i64\"\nshape = [1]\n[outputs.y]\ndtype = \"f32\"\nshape = [1, 45]\n[outputs.h_out]\ndtype = \"i64\"\nshape = [1]\n[[state]]\ninput = \"h\"\noutput = \"h_out\"\n" >counter/model.toml
        printf "backend = \"echo\"\n[inputs.x]\ndtype = \"f32\"\nshape = [1]\n[outputs.y]\ndtype = \"f32\"\nshape = [1]\n[options]\nsleep_us = \"20000\"\n" >slow/model.toml
        [ ! -e /box/models ] || cp /box/models/go2.onnx .' || fail "operators cannot write below /var/lib/inferd/models"
    write_models
    must systemctl reload inferd
    await "the model" live counter
    equal "$(main_pid)" "$before" "main pid"
    holds "$(operator models)" counter "inferctl models"
}

a_robot_of_the_group_infers_and_one_outside_is_told_what_to_do() {
    holds "$(robot once counter)" "ok generation 1" "a robot"
    if [ -e /box/models ]; then await "the policy" live go2; holds "$(robot once go2)" "ok generation 1" "a robot with an ONNX policy"; fi
    local said; said=$(runuser -u tester -- robot once counter) && fail "a user outside the group attached"
    holds "$said" "/run/inferd" "refusal"
    holds "$said" "ermission denied" "refusal"
    holds "$said" "group" "refusal"
    said=$(runuser -u other -- inferctl status 2>&1) && fail "a robot may operate"
    holds "$said" "ermission denied" "refusal of a robot at the control socket"
}

the_status_says_models_generations_sessions_and_latency() {
    drop_in status <<<$'[Service]\nWatchdogSec=2'
    must systemctl restart inferd
    robot loop counter 60 >/tmp/loop & local loop=$!
    await "the status" bash -c "systemctl show -P StatusText inferd | grep -q 'p99'"
    local text; text=$(show StatusText)
    kill $(pgrep -x robot); wait $loop
    holds "$text" "models live, 1 session" "status"
    holds "$text" "counter generation 1, 1 session, p99 " "status"
    holds "$(systemctl status inferd --no-pager)" "Status: \"" "systemctl status"
    drop_out status
}

a_bad_configuration_changes_nothing_and_is_reported_with_its_line() {
    local since; since=$(date +%s.%6N)
    config <<<$'[models.counter]\npath = "/var/lib/inferd/models/counter"\nslotz = 3'
    must systemctl reload inferd
    await "the report" bash -c "journalctl -u inferd --since @$since -o cat | grep -q 'models.toml:3'"
    equal "$(model counter | field state)" live "the model meanwhile"
    write_models
    must systemctl reload inferd
}

a_changed_model_reloads_and_the_others_are_untouched() {
    local before generation; before=$(main_pid)
    generation=$(model counter | field generation)
    sed -i 's|^path = "/var/lib/inferd/models/counter"|&\noptions = { sleep_us = "1" }|' /etc/inferd/inferd.d/models.toml
    must systemctl reload inferd
    await "the next generation" bash -c "runuser -u oper -- inferctl models counter --json | grep -q '\"generation\": $((generation + 1))'"
    equal "$(main_pid)" "$before" "main pid"
    equal "$(model slow | field generation)" 1 "generation of the other model"
    write_models; must systemctl reload inferd
}

a_worker_killed_costs_one_request_and_the_service_lives_on() {
    local pid worker; pid=$(main_pid)
    robot loop counter 60 >/tmp/loop & local loop=$!
    await "the session" bash -c "runuser -u oper -- inferctl sessions --json | grep -q session"
    worker=$(model counter | field worker_pid)
    must kill -KILL "$worker"
    await "a new worker" bash -c "[ \"\$(runuser -u oper -- inferctl models counter --json | sed -n 's/.*\"worker_deaths\": \([0-9]*\).*/\1/p')\" -gt 0 ] && runuser -u oper -- inferctl models counter --json | grep -q '\"state\": \"live\"'"
    sleep 0.3; kill $(pgrep -x robot); wait $loop
    equal "$(main_pid)" "$pid" "main pid"
    equal "$(count /tmp/loop reattaches)" 0 "reattaches"
    [ "$(count /tmp/loop worker_lost)" -le 1 ] || fail "more than one worker_lost: $(cat /tmp/loop)"
    [ "$(count /tmp/loop ok)" -gt 100 ] || fail "the robot was not served: $(cat /tmp/loop)"
}

a_daemon_killed_is_restarted_and_its_clients_reattach() {
    local pid inode restarts; pid=$(main_pid) inode=$(stat -c %i /run/inferd/attach.sock) restarts=$(show NRestarts)
    robot loop counter 60 >/tmp/loop & local loop=$!
    await "the session" bash -c "runuser -u oper -- inferctl sessions --json | grep -q session"
    must kill -KILL "$pid"
    await "another main pid" bash -c "p=\$(systemctl show -P MainPID inferd); [ \$p != 0 ] && [ \$p != $pid ]"
    await "the service" bash -c "runuser -u oper -- inferctl sessions --json | grep -q session"
    await "an answer" answered counter; sleep 0.3; kill $(pgrep -x robot); wait $loop
    equal "$(show NRestarts)" $((restarts + 1)) "restarts"
    equal "$(stat -c %i /run/inferd/attach.sock)" "$inode" "inode of the socket, which stays"
    equal "$(count /tmp/loop reattaches)" 1 "reattaches"
    equal "$(count /tmp/loop state_reset)" 1 "replies that tell of the reset state ($(cat /tmp/loop))"
    [ "$(count /tmp/loop ok)" -gt 100 ] || fail "the robot was not served: $(cat /tmp/loop)"
}

a_hung_supervisor_is_found_by_the_watchdog() {
    local pid; drop_in watchdog <<<$'[Service]\nWatchdogSec=1'
    must systemctl restart inferd
    pid=$(main_pid)
    must kill -STOP "$pid"
    await "another main pid" bash -c "p=\$(systemctl show -P MainPID inferd); [ \$p != 0 ] && [ \$p != $pid ]"
    await "the service" live counter
    holds "$(journalctl -u inferd -o cat)" "Failed with result 'watchdog'" "journal"
    drop_out watchdog
}

restarts_under_load_leave_no_client_behind() {
    drop_in burst <<<$'[Unit]\nStartLimitIntervalSec=0'
    local i n loops=()
    for i in 1 2 3; do robot loop counter 600 >"/tmp/loop$i" & loops+=($!); done
    await "three sessions" bash -c "[ \$(runuser -u oper -- inferctl sessions --json | grep -c '\"session\"') = 3 ]"
    for ((n = 0; n < ROUNDS; n++)); do
        must systemctl restart inferd
        await "three sessions after restart $n" bash -c "[ \$(runuser -u oper -- inferctl sessions --json | grep -c '\"session\"') = 3 ]"
    done
    kill $(pgrep -x robot); wait "${loops[@]}"
    drop_out burst
    for i in 1 2 3; do
        [ "$(count "/tmp/loop$i" reattaches)" -ge "$ROUNDS" ] || fail "robot $i did not reattach each time: $(cat "/tmp/loop$i")"
        local known=0 name
        for name in ok daemon_lost shutting_down connreset hostdown timeout; do known=$((known + $(count "/tmp/loop$i" $name))); done
        equal "$known" "$(count "/tmp/loop$i" requests)" "requests that ended in what a restart may end them in ($(cat "/tmp/loop$i"))"
    done
    sed -n 's/.*"gaps_ms": \[\(.*\)\]}/\1/p' /tmp/loop1 | tr ',' '\n' | grep . | sort -n >/tmp/gaps
    say "FIGURE restart_gap_ms p50=$(awk '{v[NR]=$1} END {print v[int((NR+1)/2)]}' /tmp/gaps) max=$(tail -n 1 /tmp/gaps | tr -d ' ') restarts=$ROUNDS"
}

a_client_that_attaches_during_a_restart_waits_and_is_served() {
    local n said
    local inode; inode=$(stat -c %i /run/inferd/attach.sock)
    for n in 1 2 3 4 5; do
        systemctl restart --no-block inferd
        for _ in 1 2 3; do
            said=$(robot once counter) || fail "in restart $n: $said"
        done
        await "the restart" systemctl is-active inferd
        equal "$(stat -c %i /run/inferd/attach.sock)" "$inode" "inode of the socket, which stays"
    done
    systemctl reset-failed inferd
}

a_stop_drains_and_reattaching_clients_do_not_start_it_again() {
    robot loop slow 60 >/tmp/loop & local loop=$! since
    await "the session" bash -c "runuser -u oper -- inferctl sessions --json | grep -q session"
    since=$(date +%s.%6N)
    must systemctl stop inferd
    equal "$(show Result)" success "result"
    sleep 2
    equal "$(systemctl is-active inferd.service inferd-attach.socket inferd-control.socket | sort -u)" inactive "units after a stop"
    [ ! -e /run/inferd/attach.sock ] || fail "attach.sock is left behind"
    local lines; lines=$(journalctl -u inferd --since "@$since" -o cat)
    holds "$lines" draining "journal"
    holds "$lines" stopped "journal"
    must systemctl start inferd
    await "the robot's session" bash -c "runuser -u oper -- inferctl sessions --json | grep -q session"
    kill $(pgrep -x robot); wait $loop
    equal "$(count /tmp/loop reattaches)" 1 "reattaches after the start"
}

however_often_it_is_stopped_and_started_its_sockets_listen() {
    # systemd counts starts of sockets too, five in ten seconds unless a unit says otherwise.
    local n
    for n in 1 2 3 4 5 6 7; do must systemctl stop inferd; must systemctl start inferd; done
    equal "$(systemctl is-active inferd.service inferd-attach.socket inferd-control.socket | sort -u)" active "units after $n starts"
    systemctl reset-failed inferd
}

a_connection_starts_the_service_from_cold() {
    must systemctl stop inferd
    must systemctl start inferd-attach.socket inferd-control.socket
    equal "$(systemctl is-active inferd.service)" inactive "service before"
    holds "$(robot once counter)" "ok generation" "the first client"
    equal "$(systemctl is-active inferd.service)" active "service after"
    must systemctl stop inferd
    must systemctl start inferd-control.socket
    holds "$(operator status)" "state" "an operator's command from cold"
    must systemctl start inferd
}

a_control_socket_in_the_robots_group_is_refused_with_the_remedy() {
    # Without tmpfiles.d the sockets' directory is root's, and systemd gives it to the service with all that is inside.
    must systemctl stop inferd
    rm -rf /run/inferd
    systemctl start inferd && fail "started with a control socket of group $(stat -c %G /run/inferd/control.sock)"
    holds "$(journalctl -u inferd -n 20 -o cat)" "systemd-tmpfiles --create" "remedy in the journal"
    must systemctl stop inferd inferd-attach.socket inferd-control.socket
    must systemd-tmpfiles --create
    systemctl reset-failed inferd
    must systemctl start inferd
    equal "$(stat -c %G /run/inferd/control.sock)" inferd-admin "group of control.sock"
    holds "$(robot once counter)" "ok" "a robot"
}

a_model_that_cannot_be_loaded_fails_the_start_and_says_why() {
    config <<<$'[models.missing]\npath = "/var/lib/inferd/models/missing"'
    systemctl restart inferd && fail "the start succeeded"
    holds "$(show StatusText)$(journalctl -u inferd -n 30 -o cat)" "model missing" "status or journal"
    holds "$(journalctl -u inferd -n 30 -o cat)" "optional = true" "remedy in the journal"
    write_models
    systemctl reset-failed inferd
    must systemctl start inferd
}

the_exposure_is_as_small_as_the_profiles_promise() {
    local profile most rating
    for profile in cpu:0.6 rt:0.8 gpu:0.8; do
        most=${profile#*:} profile=${profile%:*}
        mkdir -p /etc/systemd/system/inferd.service.d
        [ $profile = cpu ] || must ln -sf "/usr/share/inferd/profiles/$profile.conf" /etc/systemd/system/inferd.service.d/
        must systemctl daemon-reload
        rating=$(systemd-analyze security --no-pager inferd.service | sed -n 's/.*Overall exposure level for inferd.service: \([0-9.]*\).*/\1/p')
        rm -f "/etc/systemd/system/inferd.service.d/$profile.conf"
        [ -n "$rating" ] && awk "BEGIN {exit !($rating <= $most)}" || fail "profile $profile is rated \"$rating\", more than $most"
        say "FIGURE exposure_$profile $rating"
    done
    must systemctl daemon-reload
}

units_are_sound() {
    # Manual pages are left out of this small machine; everything else that systemd finds to say is a fault.
    systemd-analyze verify inferd.service inferd-attach.socket inferd-control.socket 2>&1 | grep -v "Command 'man" >/tmp/verify
    [ ! -s /tmp/verify ] || fail "$(cat /tmp/verify)"
}

reload_waits_where_systemd_knows_how() {
    [ "$(systemctl --version | sed -n 's/^systemd \([0-9]*\).*/\1/p')" -ge 253 ] || { say "SKIP notify_reload: systemd is older than 253"; return 0; }
    must ln -sf /usr/share/inferd/profiles/notify-reload.conf /etc/systemd/system/inferd.service.d/
    must systemctl daemon-reload; must systemctl restart inferd
    equal "$(show Type)" notify-reload "type"
    local pid; pid=$(main_pid)
    printf '\n[models.more]\npath = "/var/lib/inferd/models/slow"\n' >>/etc/inferd/inferd.d/models.toml
    must systemctl reload inferd
    holds "$(operator models)" more "models right after the reload"
    equal "$(main_pid)" "$pid" "main pid"
    rm /etc/systemd/system/inferd.service.d/notify-reload.conf
    write_models; must systemctl daemon-reload; must systemctl restart inferd
}

an_ordinary_user_runs_inferd_alone() {
    local as="systemctl --user -M tester@" run=/run/user/1000
    runuser -u tester -- mkdir -p /home/tester/.config/inferd
    printf '[models.mine]\npath = "/var/lib/inferd/models/counter"\n' >/home/tester/.config/inferd/inferd.toml
    must $as daemon-reload
    must $as enable --now inferd
    holds "$($as show -P StatusText inferd)" "1 of 1 models live" "status"
    equal "$(stat -c '%U %a' $run/inferd/attach.sock)" "tester 600" "attach.sock"
    holds "$(runuser -u tester -- env XDG_RUNTIME_DIR=$run robot once mine)" "ok generation 1" "the user's robot"
    runuser -u tester -- env XDG_RUNTIME_DIR=$run inferctl status >/dev/null || fail "inferctl"
    must $as restart inferd
    holds "$(runuser -u tester -- env XDG_RUNTIME_DIR=$run robot once mine)" "ok" "the user's robot after a restart"
    must $as disable --now inferd inferd-attach.socket inferd-control.socket
    sleep 1; equal "$($as is-active inferd inferd-attach.socket inferd-control.socket | sort -u)" inactive "the user's units"
}

the_journal_is_readable_and_complete() {
    local lines; lines=$(journalctl -u inferd -o cat --no-pager)
    local what; for what in starting ready "making the next generation" "configuration read" draining stopped \
        "confined: profile strict: no_new_privs, seccomp"; do holds "$lines" "$what" journal; done
    printf '%s' "$lines" | grep -q $'\033' && fail "escape sequences in the journal"
    printf '%s\n' "$lines" | grep -qE 'panicked|RUST_BACKTRACE' && fail "a panic: $(printf '%s\n' "$lines" | grep -m1 -A3 panicked)"
    # Fields, not only text: an operator filters by model.
    [ -n "$(journalctl -u inferd F_MODEL=counter -o cat -n 1)" ] || fail "no line can be found by F_MODEL=counter"
    journalctl -u inferd -o json -n 500 | grep -q '"F_UID"' || fail "commands do not name the uid that asked"
}

the_doctor_finds_a_sound_installation_sound_and_names_what_is_broken() {
    local said; said=$(runuser -u oper -- inferctl doctor) || fail "a sound installation: $said"
    holds "$said" "control.sock" "doctor"
    chmod 0666 /run/inferd/control.sock
    said=$(inferctl doctor) && fail "it did not find a control socket that is open to everybody"
    holds "$said" "chmod" "what to do about it"
    chmod 0660 /run/inferd/control.sock
}

an_upgrade_restarts_the_service_keeps_the_configuration_and_clients_reattach() {
    local pid; pid=$(main_pid)
    sed -i 's/^drain_ms = .*/drain_ms = 4000/' /etc/inferd/inferd.toml
    robot loop counter 120 >/tmp/loop & local loop=$!
    await "the session" bash -c "runuser -u oper -- inferctl sessions --json | grep -q session"
    must dpkg -i /box/upgrade/*.deb
    holds "$(dpkg-query -W inferd)" "+upgrade" "version"
    [ "$(main_pid)" != "$pid" ] || fail "the service was not restarted"
    await "the session" bash -c "runuser -u oper -- inferctl sessions --json | grep -q session"
    await "an answer" answered counter; sleep 0.3; kill $(pgrep -x robot); wait $loop
    grep -q '^drain_ms = 4000' /etc/inferd/inferd.toml || fail "the upgrade changed a configuration file that an operator had changed"
    equal "$(systemctl is-enabled inferd.service)" enabled enabled
    equal "$(count /tmp/loop reattaches)" 1 "reattaches"
    equal "$(count /tmp/loop state_reset)" 1 "replies that tell of the reset state"
    equal "$(systemctl is-active inferd-attach.socket inferd-control.socket | sort -u)" active "sockets"
}

figures() {
    local enter exit i total=0 size
    for i in 1 2 3 4 5; do
        must systemctl restart inferd
        exit=$(show ExecMainStartTimestampMonotonic) enter=$(show ActiveEnterTimestampMonotonic)
        printf '%s\n' $(((enter - exit) / 1000))
    done | sort -n >/tmp/ready
    systemctl reset-failed inferd
    say "FIGURE start_to_ready_ms median=$(sed -n 3p /tmp/ready) max=$(tail -n 1 /tmp/ready) models=$(operator models --json | grep -c '"model"')"
    for i in inferd libinferd0 libinferd-dev; do size=$(dpkg-query -W -f '${Installed-Size}' $i); say "FIGURE installed_kib_$i $size"; done
    say "FIGURE rss_kib supervisor=$(awk '/^VmRSS/ {print $2}' "/proc/$(main_pid)/status") worker_echo=$(awk '/^VmRSS/ {print $2}' "/proc/$(model counter | field worker_pid)/status")$(
        [ -e /box/models ] && echo " worker_go2=$(awk '/^VmRSS/ {print $2}' "/proc/$(model go2 | field worker_pid)/status")")"
}

a_purge_leaves_nothing() {
    must dpkg --purge inferd libinferd-dev libinferd0
    equal "$(systemctl is-active inferd.service inferd-attach.socket inferd-control.socket | sort -u)" inactive "units"
    equal "$(getent passwd inferd; getent group inferd; getent group inferd-admin)" "" "users and groups"
    # dpkg's own logs and backups, and the journal, are the machine's; this script's files are not the package's.
    local left; left=$(find / -xdev \( -path /proc -o -path /sys -o -path /box -o -path /var/log -o -path /var/lib/dpkg -o -path /tmp -o -path /home \) -prune -o -iname '*inferd*' -print)
    equal "$left" "" "files"
}

scenario the_packages_install_enable_and_start_the_service || exit 1
[ "$FAILED" = 0 ] || { echo "nothing else can be tried"; exit 1; }
useradd -m oper && usermod -a -G inferd-admin oper && usermod -a -G inferd other || exit 1
for name in the_daemon_and_its_workers_have_no_privileges \
    an_operator_without_root_adds_models_and_a_reload_serves_them \
    a_robot_of_the_group_infers_and_one_outside_is_told_what_to_do \
    the_status_says_models_generations_sessions_and_latency \
    a_bad_configuration_changes_nothing_and_is_reported_with_its_line \
    a_changed_model_reloads_and_the_others_are_untouched \
    a_worker_killed_costs_one_request_and_the_service_lives_on \
    a_daemon_killed_is_restarted_and_its_clients_reattach \
    a_hung_supervisor_is_found_by_the_watchdog \
    restarts_under_load_leave_no_client_behind \
    a_client_that_attaches_during_a_restart_waits_and_is_served \
    a_stop_drains_and_reattaching_clients_do_not_start_it_again \
    however_often_it_is_stopped_and_started_its_sockets_listen \
    a_connection_starts_the_service_from_cold \
    a_control_socket_in_the_robots_group_is_refused_with_the_remedy \
    a_model_that_cannot_be_loaded_fails_the_start_and_says_why \
    the_exposure_is_as_small_as_the_profiles_promise \
    units_are_sound reload_waits_where_systemd_knows_how \
    an_ordinary_user_runs_inferd_alone the_journal_is_readable_and_complete \
    the_doctor_finds_a_sound_installation_sound_and_names_what_is_broken \
    an_upgrade_restarts_the_service_keeps_the_configuration_and_clients_reattach; do
    case $name in *${ONLY:-}*) scenario "$name" ;; an_operator*) scenario "$name" ;; esac
done
( here=figures; figures )
scenario a_purge_leaves_nothing
exit "$FAILED"
