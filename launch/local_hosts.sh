#!/usr/bin/env bash
# Runs pmjax.main as several hosts on this machine, over jax.distributed and virtual CPU devices.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: launch/local_hosts.sh N [options] -- <arguments of pmjax.main>

Starts N processes on this machine as the N hosts of one run. Each line of output starts with the
index of its process. SIGTERM and Ctrl-C are forwarded to all processes (the run saves its state and
can be resumed). When a process fails, the others are ended, and the script exits with its status.

  --devices_per_host=D   CPU devices per host (1)
  --grace=SECONDS        time for the other processes to end after a failure (10)
  --command=COMMAND      instead of $PMJAX_COMMAND or 'python -m pmjax.main'; split at spaces
  --dry_run              print the commands without running them

  launch/local_hosts.sh 2 --devices_per_host=2 -- --config=configs/digits.py:runlocal \
    --workdir=runs/two_hosts
TEXT
}

fail() {
  echo "local_hosts.sh: $*" >&2
  exit 2
}

# Refuses URLs among the arguments of pmjax.main, before anything is started.
refuse_urls() {
  local word
  for word in "$@"; do
    [[ ! $word =~ ^(--[^=]*=)?[A-Za-z][A-Za-z0-9+.-]+:// ]] \
      || fail "$word: pmjax reads and writes local files only. Mount a bucket on every host (for gs://, with gcsfuse) and give the mounted path."
  done
}

# Prints a command as it could be typed.
show() {
  local word words=()
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]] || word=${word@Q}
    words+=("$word")
  done
  echo "${words[*]}"
}

hosts="" devices=1 grace=10 command="${PMJAX_COMMAND:-python -m pmjax.main}" dry_run=false
while (($#)); do
  case $1 in
    -h | --help) usage && exit ;;
    --devices_per_host=*) devices=${1#*=} ;;
    --grace=*) grace=${1#*=} ;;
    --command=*) command=${1#*=} ;;
    --dry_run) dry_run=true ;;
    --) shift && break ;;
    -*) fail "unknown option '$1'; put the arguments of pmjax.main after --. See --help." ;;
    *) [[ -z $hosts ]] || fail "unexpected '$1' after N=$hosts." && hosts=$1 ;;
  esac
  shift
done
[[ $hosts =~ ^[1-9][0-9]*$ ]] || fail "N, the number of hosts, must be a positive number. See --help."
[[ $devices =~ ^[1-9][0-9]*$ ]] || fail "--devices_per_host=$devices must be a positive number."
[[ $grace =~ ^[0-9]+$ ]] || fail "--grace=$grace must be a number of seconds."
read -ra words <<<"$command"
[[ ${#words[@]} -gt 0 ]] || fail "--command is empty."
refuse_urls "$@"
$dry_run || type -P "${words[0]}" >/dev/null || fail "there is no command '${words[0]}'."

free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}
settings=(
  -u PMJAX_DISTRIBUTED "PMJAX_COORDINATOR=127.0.0.1:$(free_port)" "PMJAX_NUM_PROCESSES=$hosts"
  "PMJAX_LOCAL_DEVICES=$devices" "JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}"
)
if $dry_run; then
  for ((i = 0; i < hosts; i++)); do
    show env "${settings[@]}" "PMJAX_PROCESS_ID=$i" "${words[@]}" "$@"
  done
  exit
fi

pipes=$(mktemp -d)
hosts_pids=() prefix_pids=() running=() watchdog=""
to_all() {
  local i
  for i in "${running[@]}"; do # a new process has no group yet
    kill "-$1" -- "-${hosts_pids[i]}" 2>/dev/null || kill "-$1" "${hosts_pids[i]}" 2>/dev/null || true
  done
}
trap 'rm -rf "$pipes"; to_all KILL; kill $watchdog 2>/dev/null || true' EXIT
trap 'to_all TERM' TERM HUP
trap 'to_all INT' INT

# Own sessions: Ctrl-C reaches the processes once, through the trap, and never the prefixes. Bash makes
# background processes ignore SIGINT; env undoes that.
for ((i = 0; i < hosts; i++)); do
  mkfifo "$pipes/$i"
  setsid sed -u "s/^/[$i] /" <"$pipes/$i" &
  prefix_pids+=($!)
  setsid env --default-signal=INT,QUIT "${settings[@]}" "PMJAX_PROCESS_ID=$i" "${words[@]}" "$@" \
    >"$pipes/$i" 2>&1 </dev/null &
  hosts_pids+=($!) running+=("$i")
done

# Polls each process: bash's 'wait -n' misses processes that end before the call.
status=0
while ((${#running[@]})); do
  sleep 0.1
  left=()
  for i in "${running[@]}"; do
    if kill -0 "${hosts_pids[i]}" 2>/dev/null; then
      left+=("$i")
      continue
    fi
    code=0
    wait "${hosts_pids[i]}" || code=$?
    ((code && !status)) || continue
    status=$code
    echo "local_hosts.sh: process $i ended with status $code; ending the others." >&2
    to_all TERM
    (
      sleep "$grace" &
      trap 'kill $!' TERM
      wait $! && to_all KILL
    ) >/dev/null 2>&1 &
    watchdog=$!
  done
  running=("${left[@]}")
done
wait "${prefix_pids[@]}" || true
exit "$status"
