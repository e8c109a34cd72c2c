#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Tests marked `slurm`, on a Slurm of their own: munged, slurmctld and two slurmd, each a "node" with
# two GPUs that are empty files, started as the invoking user and stopped by their own process ids.
# Everything of it lies in one temporary folder. Nothing is installed; where a program is missing, or
# the daemons may not run, the tests are skipped with the reason.
#
#   tools/slurm_test.sh [arguments of pytest]
set -uo pipefail
repository=$(cd "$(dirname "$0")/.." && pwd)
folder=$(mktemp -dt prmim-slurm.XXXXXX) && chmod 755 "$folder"
daemons=()

skip() {
    echo "skipped: $1" >&2
    exit 0
}

stop() {
    if ((${#daemons[@]})); then
        scancel --user="$(id -un)" 2>/dev/null
        for _ in {1..40}; do
            [ -z "$(squeue --noheader 2>/dev/null)" ] && break
            sleep 0.5
        done
        for pid in "${daemons[@]}"; do kill "$pid" 2>/dev/null; done
        wait
    fi
    rm -rf "$folder"
}
trap stop EXIT

for program in munged slurmctld slurmd srun sbatch; do
    PATH=$PATH:/usr/sbin command -v $program >/dev/null ||
        skip "no $program; Debian and Ubuntu: apt-get install slurm-wlm munge"
done
export PATH=$PATH:/usr/sbin

nodes=(127.0.0.1 127.0.0.2) # names that every machine can look up, as a cluster's nodes have them

mapfile -t ports < <(python3 - <<'PYTHON'
import socket
while True:
    with socket.socket() as first, socket.socket() as second, socket.socket() as third:
        first.bind(('127.0.0.1', 0))
        port = first.getsockname()[1]
        try:
            second.bind(('127.0.0.1', port + 1)), third.bind(('127.0.0.1', port + 2))
        except (OSError, OverflowError):
            continue
        print(port, port + 1, port + 2, sep='\n')
        break
PYTHON
)
mkdir -p "$folder"/{run,state,spool,log}
touch "$folder"/gpu{0,1}
(umask 077 && head -c 1024 /dev/urandom >"$folder/munge.key")
export SLURM_CONF=$folder/slurm.conf
cat >"$folder/slurm.conf" <<CONF
ClusterName=prmim
SlurmctldHost=localhost
SlurmctldPort=${ports[0]}
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$folder/run/munge.socket
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmctldPidFile=$folder/run/slurmctld.pid
SlurmdPidFile=$folder/run/slurmd-%n.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_interval=2,batch_sched_delay=0,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
KillWait=5
MessageTimeout=60
NodeName=127.0.0.[1-2] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[${ports[1]}-${ports[2]}] CPUs=4 RealMemory=8000 Gres=gpu:2
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=2
CONF
echo "Name=gpu File=$folder/gpu[0-1] Flags=nvidia_gpu_env" >"$folder/gres.conf"

start() { # the daemon in the foreground of a job of this shell, whose id is then its own
    "$@" >>"$folder/log/start.log" 2>&1 &
    daemons+=($!)
}
start munged --foreground --force --num-threads=2 --key-file="$folder/munge.key" \
    --socket="$folder/run/munge.socket" --pid-file="$folder/run/munged.pid" \
    --log-file="$folder/log/munged.log" --seed-file="$folder/run/munge.seed"
for _ in {1..50}; do [ -S "$folder/run/munge.socket" ] && break || sleep 0.1; done
start slurmctld -D
for node in "${nodes[@]}"; do start slurmd -D -N "$node"; done
for _ in {1..60}; do
    [ "$(sinfo --noheader --Node --states=idle 2>/dev/null | awk '{print $1}' | sort -u | wc -l)" -eq 2 ] && break
    sleep 0.5
done
if ! srun --nodes=2 --ntasks=2 true 2>"$folder/log/srun.log"; then
    tail -n 5 "$folder"/log/*.log >&2
    skip "Slurm's daemons do not come up as $(id -un); their last lines are above"
fi

cd "$repository" || exit 1
python -m pytest -m slurm -n 0 "$@"
