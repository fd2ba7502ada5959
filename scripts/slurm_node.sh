#!/bin/sh
# A SLURM cluster of this one machine, for tests: `scripts/slurm_node.sh start` prints the path of its slurm.conf,
# `scripts/slurm_node.sh stop CONF` ends it. Needs Debian's munge and slurm-wlm (or the like), no systemd, no cgroups,
# and neither reads nor writes /etc. GPUS=2 gives the node so many GPUs that are none, to see how jobs are placed.
set -eu
PATH=$PATH:/usr/sbin:/sbin

fail() { echo "error: $1" >&2; exit 2; }

running() { # a daemon's pid file: its pid, while it runs
	pid=$(cat "$1" 2>/dev/null) && kill -0 "$pid" 2>/dev/null && echo "$pid"
}

wait_until() { # up to 20 seconds for a command to succeed
	for _ in $(seq 200); do "$@" >/dev/null 2>&1 && return; sleep 0.1; done
	return 1
}

stop() {
	folder=$1
	[ -f "$folder/slurm.conf" ] || fail "$folder/slurm.conf is not of a node that this script started"
	SLURM_CONF=$folder/slurm.conf scancel --user="$(id -un)" 2>/dev/null || true
	pids=$(for name in slurmd slurmctld munged; do running "$folder/$name.pid"; done || true)
	for pid in $pids; do kill "$pid"; done
	for pid in $pids; do wait_until sh -c "! kill -0 $pid" || kill -9 "$pid"; done
	rm -rf "$folder"
}

start() {
	for name in munged slurmctld slurmd sbatch; do
		command -v $name >/dev/null || fail "$name is not installed; on Debian and Ubuntu: apt install munge slurm-wlm"
	done
	folder=$(mktemp -d "${TMPDIR:-/tmp}/slurm-node-XXXXXX")
	trap 'stop "$folder"' EXIT
	chmod 711 "$folder" # munged wants its socket to be within reach of all
	mkdir "$folder/state" "$folder/spool"
	(umask 077 && head -c 128 /dev/urandom >"$folder/munge.key")
	user=$(id -un) node=$(hostname -s) gpus=${GPUS:-0}
	[ "$gpus" = 0 ] || gres=Gres=gpu:$gpus
	# shellcheck disable=SC2046
	set -- $(python3 -c 'import socket
found = [socket.socket() for _ in range(2)]
for each in found: each.bind(("127.0.0.1", 0))
print(*(each.getsockname()[1] for each in found))')
	cat >"$folder/slurm.conf" <<-END
		ClusterName=one
		SlurmctldHost=$node(127.0.0.1)
		SlurmctldPort=$1
		SlurmdPort=$2
		AuthType=auth/munge
		AuthInfo=socket=$folder/munge.socket
		SlurmUser=$user
		SlurmdUser=$user
		StateSaveLocation=$folder/state
		SlurmdSpoolDir=$folder/spool
		SlurmctldPidFile=$folder/slurmctld.pid
		SlurmdPidFile=$folder/slurmd.pid
		SlurmctldLogFile=$folder/slurmctld.log
		SlurmdLogFile=$folder/slurmd.log
		MailProg=/bin/true
		MpiDefault=none
		ProctrackType=proctrack/linuxproc
		TaskPlugin=task/none
		JobAcctGatherType=jobacct_gather/none
		AccountingStorageType=accounting_storage/none
		SelectType=select/cons_tres
		SelectTypeParameters=CR_CPU
		SchedulerParameters=batch_sched_delay=0,sched_min_interval=0
		KillWait=5
		ReturnToService=2
		GresTypes=gpu
		NodeName=$node NodeAddr=127.0.0.1 CPUs=2 ${gres:-} State=UNKNOWN
		PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
	END
	for number in $(seq "$gpus"); do
		: >"$folder/gpu$number"
		echo "NodeName=$node Name=gpu File=$folder/gpu$number"
	done >"$folder/gres.conf"
	munged --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
		--log-file="$folder/munged.log" --seed-file="$folder/munge.seed" >"$folder/start.log" 2>&1 ||
		fail "munged does not start: $(tail -n 1 "$folder/start.log")"
	export SLURM_CONF="$folder/slurm.conf"
	slurmctld -f "$SLURM_CONF" >>"$folder/start.log" 2>&1 || fail "slurmctld does not start: $(tail -n 1 "$folder/start.log")"
	slurmd -f "$SLURM_CONF" >>"$folder/start.log" 2>&1 || fail "slurmd does not start: $(tail -n 1 "$folder/start.log")"
	wait_until sh -c 'sinfo -h -o %T | grep -q idle' || fail "the node does not come up: $(tail -n 1 "$folder/slurmctld.log")"
	trap - EXIT
	echo "$SLURM_CONF"
}

case "${1:-}" in
start) start ;;
stop) stop "$(dirname "${2:?the slurm.conf that start printed}")" ;;
*) fail "say start, or stop CONF" ;;
esac
