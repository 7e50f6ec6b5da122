#!/usr/bin/env bash
# A Ray cluster of this machine alone, for trying out what a real one will do: token authentication on, nothing
# listens beyond loopback. Further arguments go to `ray start`, such as --num-cpus=4.
#
#     bash cluster/local.sh
#     python -m cluster submit -- python -m trainers train digits.cnn --workers 2
#
# `ray stop` ends it, with every other Ray of this user on this machine.
set -euo pipefail
: "${HOME:?is not set, and Ray keeps its token there; set it to a folder of your own}"

# Without a token `ray start` leaves authentication off.
[ -s "$HOME/.ray/auth_token" ] || ray get-auth-token --generate >/dev/null
chmod 600 "$HOME/.ray/auth_token"
export RAY_AUTH_MODE=token
export RAY_JOB_STOP_WAIT_TIME_S=60 # what a stopped job has to save; Ray's default is 3
export RAY_worker_niceness=${RAY_worker_niceness:-0} # as nice as this shell; by itself Ray yields to every other program
# Without this Ray replaces 127.0.0.1 by the host's own address, and listens on all of them. Jobs inherit it.
export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0

# No proxy reaches loopback.
no_proxy=${no_proxy:-${NO_PROXY:-}}
export no_proxy="${no_proxy:+$no_proxy,}localhost,127.0.0.1"
export NO_PROXY=$no_proxy

# A port that is taken, by another cluster or by the Ray that a sweep has started, is replaced by a free one; Ray itself
# would leave out what was to listen there, the start of jobs say, and not mention it.
free_port() { # the first of these ports, upwards or downwards
    local port=$1
    while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + $2)); done
    echo "$port"
}
head=$(free_port 6379 1) dashboard=$(free_port 8265 1) client=$(free_port 10001 -1) # Ray's workers have 10002 and more
if [ "$dashboard" != 8265 ] && [[ " $*" != *" --dashboard-port"* ]]; then
    echo "port 8265 is taken: give --address 127.0.0.1:$dashboard to python -m cluster submit, status, logs and stop" >&2
fi
ray start --head --node-ip-address=127.0.0.1 --disable-usage-stats --port="$head" --dashboard-port="$dashboard" \
    --ray-client-server-port="$client" --dashboard-agent-listen-port=0 "$@"
