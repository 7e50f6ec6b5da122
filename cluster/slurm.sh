#!/usr/bin/env bash
# A Ray cluster inside one Slurm allocation, for one command; submitted again, the same line continues the run:
#
#     sbatch --nodes=4 cluster/slurm.sh \
#       python -m trainers train shapes.unet --workers 4 --run shapes --storage /shared/runs
#
# Submit with the environment active in which `pip install .` was done (Python 3.11, ray>=2.60, as pyproject.toml
# says); its folder, $HOME and --storage are seen by every node. --storage may be a bucket (s3://, gs://) that the
# nodes have a role for. The job's output names the ssh line that reaches the dashboard.
#
# The time limit, and `scancel --batch --signal=TERM JOB`, give the run two minutes to save. A plain `scancel` ends Ray
# at the same moment as the command, so the run falls back on its last checkpoint. A job that Slurm requeues (a node
# failed, it was preempted) continues by its --run name. For more time than the limit give `--dependency=singleton`
# and submit the same line several times.
#
# Ray's own servers listen on every address of a node; what keeps others out is the token, made for this job and read
# by this user alone. The dashboard listens on loopback.
#
# Tried: shellcheck, and a stub scheduler whose nodes are processes of one machine: a run of two workers on a real Ray
# of two nodes, and clean-up; signals with a stub of Ray. Not tried: Slurm itself, GPUs, several machines.
#SBATCH --job-name=trainyard
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
umask 077

if [ -z "${SLURM_JOB_ID:-}" ] || [ $# -eq 0 ]; then
  echo "usage: sbatch [--nodes=N ...] cluster/slurm.sh COMMAND..." >&2
  exit 2
fi

# Two jobs on one node collide only where their numbers differ by a multiple of 1200: 20000 to 31999, between the ports
# of a Ray of defaults and those that Linux hands out by itself. All other ports are chosen by the system.
export PORT=$((20000 + SLURM_JOB_ID % 1200 * 10))
export AUTOSCALER_METRIC_PORT=$((PORT + 3)) DASHBOARD_METRIC_PORT=$((PORT + 4))
# This script runs on the first node, which will be the head. Workers get its address as a number: no DNS.
HEAD_IP="$(hostname -I | tr ' ' '\n' | grep -m 1 -E '^[0-9]+(\.[0-9]+){3}$')"
export HEAD_IP
export RAY_TEMP="/tmp/ty$SLURM_JOB_ID" # short: paths of sockets end at 107 characters
shared="$HOME/.trainyard/slurm-$SLURM_JOB_ID"

unset RAY_ADDRESS RAY_AUTH_TOKEN RAY_AUTH_TOKEN_PATH # of another cluster
export RAY_AUTH_MODE=token
# A dead or hanging node is noticed after 12 s, not 63 s.
export RAY_health_check_period_ms=1000 RAY_health_check_timeout_ms=3000 RAY_health_check_failure_threshold=3
export RAY_JOB_STOP_WAIT_TIME_S=60 # what a stopped job has to save; Ray's default is 3
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 # Ray is ended when the command has: nothing to wait 30 s for

# What each node does: Ray, restarted whenever it dies, until srun ends it.
node() {
  set -u
  local child=""
  mkdir -p "$RAY_TEMP"
  [ -O "$RAY_TEMP" ] || { echo "$RAY_TEMP belongs to somebody else" >&2 && exit 1; }
  trap 'kill "$child" 2>/dev/null; wait; rm -rf "$RAY_TEMP"; exit 0' TERM INT
  local start=(--address="$HEAD_IP:$PORT")
  if [ "$SLURM_PROCID" = 0 ]; then
    start=(--head --node-ip-address="$HEAD_IP" --port="$PORT" --dashboard-port=$((PORT + 1)))
    start+=(--ray-client-server-port=$((PORT + 2)))
  fi
  start+=(--num-cpus="$SLURM_CPUS_ON_NODE" --num-gpus="${SLURM_GPUS_ON_NODE:-0}")
  start+=(--temp-dir="$RAY_TEMP" --disable-usage-stats)
  start+=(--min-worker-port=0 --max-worker-port=0 --dashboard-agent-listen-port=0) # 0: chosen by the system
  if [ "${SLURM_MEM_PER_NODE:-0}" -gt 0 ]; then # MiB; Ray would take its 30 % of the host, not of the job
    start+=(--object-store-memory=$((SLURM_MEM_PER_NODE * 1048576 * 3 / 10)))
  fi
  while :; do
    ray start --block "${start[@]}" &
    child=$!
    wait "$child"
    sleep 1
  done
}

# Runs a command to its end; a signal to this script reaches it, and it may take its time.
attended() {
  local code=0
  "$@" &
  child=$!
  wait "$child" || code=$?
  while [ "$code" -gt 128 ] && kill -0 "$child" 2>/dev/null; do # a signal ended the wait, not the command
    code=0
    wait "$child" || code=$?
  done
  child=""
  return "$code"
}

clean_up() {
  trap '' TERM INT
  if [ -n "$nodes" ]; then
    kill "$nodes" 2>/dev/null || true
    wait "$nodes" || true
  fi
  rm -rf "$shared" "$RAY_TEMP"
}

nodes="" child=""
trap clean_up EXIT
trap '[ -n "$child" ] || exit 143; kill -TERM "$child" 2>/dev/null' TERM INT

rm -rf "$shared" # of a job that was requeued
mkdir -p "$shared"
HOME="$shared" ray get-auth-token --generate >/dev/null
export RAY_AUTH_TOKEN_PATH="$shared/.ray/auth_token"

srun --overlap --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
  --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=0 --wait=0 \
  bash -c "$(declare -f node); node" &
nodes=$!

export RAY_ADDRESS="$HEAD_IP:$PORT"
echo "dashboard: ssh -N -L 8265:localhost:$((PORT + 1)) $HEAD_IP" >&2
attended timeout 600 python -c '
import sys, time, ray
wanted, found = int(sys.argv[1]), 0
while found < wanted:
    try:
        if not ray.is_initialized():
            ray.init(log_to_driver=False, logging_level="ERROR")
        joined = sum(node["Alive"] for node in ray.nodes())
        if joined != found:
            print(f"{joined} of {wanted} nodes have joined", file=sys.stderr)
        found = joined
    except ConnectionError as error:
        print(f"waiting for the head: {error}", file=sys.stderr)
    time.sleep(0.5)
' "$SLURM_JOB_NUM_NODES"
attended "$@"
