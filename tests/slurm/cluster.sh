#!/usr/bin/env bash
# A real Slurm on this machine alone: one controller and two nodes (2 CPUs, 2 GPUs that are files, each) on the loopback interface.
#   cluster.sh start DIR    write the configuration into DIR and start everything; then: export SLURM_CONF=DIR/slurm.conf
#   cluster.sh stop DIR     stop everything that was started from DIR
#   cluster.sh node DIR N   start node N (1 or 2) again        cluster.sh controller DIR   start the controller again
# Needs Debian's slurm-wlm and munge (apt-get install --no-install-recommends slurm-wlm munge). Any user can run it.
set -euo pipefail
action=$1 dir=$(mkdir -p "$2" && cd "$2" && pwd)
host=$(hostname -s) user=$(id -un)
port=$((20000 + $(printf '%s' "$dir" | cksum | cut -d' ' -f1) % 20000))
export SLURM_CONF=$dir/slurm.conf
node() { slurmd -N "n$1"; }
case $action in
start)
  mkdir -p "$dir/state" "$dir/spool1" "$dir/spool2" "$dir/munge" "$dir/key" && chmod 0755 "$dir" "$dir/munge" && chmod 0700 "$dir/key"
  cat > "$dir/slurm.conf" <<CONF
ClusterName=loopback
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$dir/munge/socket
CryptoType=crypto/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd-%n.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1
SlurmdTimeout=10
ReturnToService=2
MinJobAge=300
JobRequeue=1
KillWait=30
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 1)) CPUs=2 RealMemory=4000 Gres=gpu:2
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 2)) CPUs=2 RealMemory=4000 Gres=gpu:2
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
CONF
  printf 'NodeName=n[1-2] Name=gpu File=/dev/null\nNodeName=n[1-2] Name=gpu File=/dev/zero\n' > "$dir/gres.conf"
  head -c 1024 /dev/urandom > "$dir/key/key" && chmod 0400 "$dir/key/key"
  munged --key-file="$dir/key/key" --socket="$dir/munge/socket" --pid-file="$dir/munge/pid" \
    --seed-file="$dir/key/seed" --log-file="$dir/key/log"
  mkdir -p "$dir/spooln1" "$dir/spooln2"
  slurmctld
  node 1
  node 2
  for _ in $(seq 60); do
    [ "$(sinfo -h -t idle -o %D)" = 2 ] && exit 0
    sleep 0.5
  done
  sinfo
  tail -n 20 "$dir"/*.log
  exit 1
  ;;
node) node "$3" ;;
controller) slurmctld ;;
stop)
  for file in "$dir"/slurmd-n1.pid "$dir"/slurmd-n2.pid "$dir"/slurmctld.pid "$dir"/munge/pid; do
    [ -f "$file" ] && kill "$(cat "$file")" 2> /dev/null || true
  done
  pkill -f "slurmstepd.*$dir" 2> /dev/null || true
  ;;
*)
  sed -n '2,6p' "$0"
  exit 2
  ;;
esac
