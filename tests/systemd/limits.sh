#!/bin/bash
# Runs in a QEMU box, as root: what namespaces have not, memory and task limits of the unit and what profile rt grants.
#
# usage: limits.sh. Prints `ok NAME` and `FAILED NAME: why` lines.
set -u
FAILED=0
said() { if [ "$2" = 0 ]; then echo "ok $1"; else echo "FAILED $1: $3"; FAILED=$((FAILED + 1)); fi; }
await() { local i; for i in $(seq 300); do "$@" >/dev/null 2>&1 && return 0; sleep 0.2; done; return 1; }
drop_in() { mkdir -p /etc/systemd/system/inferd.service.d; cat >/etc/systemd/system/inferd.service.d/test.conf; systemctl daemon-reload; systemctl restart inferd; }
json() { inferctl models m --json; }
field() { json | sed -n "s/^ *\"$1\": \"\{0,1\}\([^\",]*\)\"\{0,1\},\{0,1\}$/\1/p" | head -n 1; }
live() { [ "$(field state)" = live ]; }
cgroup() { cat "/sys/fs/cgroup$(systemctl show -P ControlGroup inferd)/$1"; }

dpkg -i /box/debs/*.deb >/tmp/out 2>&1 || { cat /tmp/out; said the_packages_install 1 dpkg; exit 1; }
usermod -a -G inferd other
mkdir -p /var/lib/inferd/models/m
printf 'backend = "echo"\n[inputs.x]\ndtype = "f32"\nshape = [4]\n[outputs.y]\ndtype = "f32"\nshape = [4]\n' >/var/lib/inferd/models/m/model.toml
printf '[ipc]\nmlock = true\n[models.m]\npath = "/var/lib/inferd/models/m"\ncpu = 1\nscheduling = "fifo:50"\n' >/etc/inferd/inferd.d/m.toml

# Without the profile: served all the same, with a warning that names the remedy.
systemctl restart inferd && await live
said without_profile_rt_the_model_is_served_at_ordinary_priority $? "$(systemctl status inferd --no-pager | tail -n 5)"
json | grep -q 'LimitRTPRIO='; said and_the_warning_names_the_limit $? "$(json | tr '\n' ' ')"

ln -s /usr/share/inferd/profiles/rt.conf /etc/systemd/system/inferd.service.d/rt.conf 2>/dev/null ||
    { mkdir -p /etc/systemd/system/inferd.service.d; ln -s /usr/share/inferd/profiles/rt.conf /etc/systemd/system/inferd.service.d/rt.conf; }
systemctl daemon-reload; systemctl restart inferd; await live
worker=$(field worker_pid)
runuser -u other -- robot once m >/tmp/out; said profile_rt_serves $? "$(cat /tmp/out)"
policies=$(for task in /proc/"$worker"/task/*; do sed 's/.*) //' "$task/stat" | awk '{print $39 ":" $38}'; done | sort -u | tr '\n' ' ')
case $policies in *1:50*) r=0 ;; *) r=1 ;; esac
said profile_rt_runs_the_executor_at_sched_fifo $r "policy:priority of its threads: $policies"
locked=$(awk '/^VmLck/ {print $2}' "/proc/$worker/status"); [ "${locked:-0}" -gt 1000 ]
said profile_rt_locks_the_worker_s_memory $? "VmLck ${locked:-0} kB"
[ "$(cat "/proc/$(systemctl show -P MainPID inferd)/oom_score_adj")" = -500 ]; said profile_rt_is_killed_last_for_memory $? oom_score_adj
echo "FIGURE vm_locked_kib $locked"
rm /etc/systemd/system/inferd.service.d/rt.conf

drop_in <<<$'[Service]\nLimitMEMLOCK=128K'
await live; json | grep -q 'LimitMEMLOCK=infinity'
said a_memlock_limit_is_a_warning_and_the_model_is_served $? "$(json | tr '\n' ' ')"

# The unit's whole memory: a model that does not fit is refused or killed, and the others go on.
drop_in <<<$'[Service]\nMemoryMax=48M\nMemorySwapMax=0'
await live; pid=$(systemctl show -P MainPID inferd)
printf 'backend = "echo"\n[inputs.x]\ndtype = "f32"\nshape = [16777216]\n[outputs.y]\ndtype = "f32"\nshape = [16777216]\n' >/tmp/model.toml
mkdir -p /var/lib/inferd/models/big && cp /tmp/model.toml /var/lib/inferd/models/big/
inferctl load big /var/lib/inferd/models/big >/tmp/out 2>&1
runuser -u other -- timeout 20 robot once big >>/tmp/out 2>&1
[ "$(cgroup memory.events | awk '/^max/ {print $2}')" -gt 0 ]; said memory_max_was_reached $? "$(cgroup memory.events | tr '\n' ' ') $(cat /tmp/out)"
await live; runuser -u other -- robot once m >/tmp/out 2>&1
said a_model_beyond_memory_max_leaves_the_others_serving $? "$(cat /tmp/out; systemctl status inferd --no-pager | tail -n 8)"
[ "$(systemctl show -P MainPID inferd)" = "$pid" ]; said and_the_supervisor_alive $? "main pid changed"

drop_in <<<$'[Service]\nTasksMax=8'
await live; for n in 1 2 3 4 5 6; do inferctl load "t$n" /var/lib/inferd/models/m >/dev/null 2>/tmp/err; done
[ -s /tmp/err ]; said tasks_max_refuses_further_models_with_a_message $? "$(inferctl models)"
runuser -u other -- robot once m >/tmp/out 2>&1; said and_the_first_one_is_served $? "$(cat /tmp/out)"
exit "$FAILED"
