#!/usr/bin/env bash
# Trains on a TPU VM slice: creates it, installs pmjax, starts training on all workers, follows its
# logs, and resumes after preemptions.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: launch/tpu_pod.sh VERB --name=NAME --zone=ZONE [options] [-- <arguments of pmjax.main>]

  run       everything: create or reuse the slice, install, start, follow the logs; after a
            preemption, delete and start over, until training is done. The slice is not deleted at
            the end.
  create    create or reuse the slice, and wait until it is ready
  install   copy this working tree (or clone --source) to all workers and install it
  start     start pmjax.main on all workers; it continues after you log off
  logs      follow the logs of all workers
  status    show the state of each worker's process
  stop      send SIGTERM to all workers: the run saves its state and can be resumed
  delete    delete the slice

  --project=PROJECT        (gcloud's default)
  --accelerator_type=TYPE  such as v5litepod-16, v4-32, v5p-8, v6e-256
  --version=VERSION        software of the TPU VM (default: by the type)
  --spot                   cheaper but preemptible
  --queued                 use a queued resource, which waits for capacity
  --source=URL[@REF]       git repository to clone on the workers, instead of this working tree
  --setup=COMMAND          run on each worker before the installation, such as mounting a disk
  --poll=SECONDS           interval between checks of the state (30)
  --dry_run                print the commands without running them

The workdir must outlive the slice and be shared by all workers: a disk that --setup mounts, not a
directory of the VM. URLs such as gs://BUCKET are rejected; launch/README.md says how to use a bucket.
After a preemption, training resumes from the last checkpoint.

  launch/tpu_pod.sh run --name=celeba --zone=us-west4-a --accelerator_type=v5litepod-16 --spot \
    --setup='sudo mount -t nfs 10.0.0.2:/share /mnt' -- --config=configs/celeba.py \
    --workdir=/mnt/runs/celeba
TEXT
}

say() { echo "tpu_pod.sh: $*" >&2; }
fail() {
  say "$*"
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

# Runs a command, or prints it.
run() { if $dry_run; then show "$@"; else "$@"; fi; }

parse() {
  case ${1:-} in
    -h | --help) usage && exit ;;
    run | create | install | start | logs | status | stop | delete) verb=$1 && shift ;;
    "") fail "a verb is missing: run, create, install, start, logs, status, stop or delete. See --help." ;;
    *) fail "unknown verb '$1': run, create, install, start, logs, status, stop or delete. See --help." ;;
  esac
  while (($#)); do
    case $1 in
      -h | --help) usage && exit ;;
      --name=*) name=${1#*=} ;;
      --zone=*) zone=${1#*=} ;;
      --project=*) project=${1#*=} ;;
      --accelerator_type=*) type=${1#*=} ;;
      --version=*) version=${1#*=} ;;
      --spot) spot=true ;;
      --queued) queued=true ;;
      --source=*) source=${1#*=} ;;
      --setup=*) setup=${1#*=} ;;
      --poll=*) poll=${1#*=} ;;
      --dry_run) dry_run=true ;;
      --) shift && break ;;
      *) fail "unknown option '$1'; put the arguments of pmjax.main after --. See --help." ;;
    esac
    shift
  done
  arguments=("$@")
}

check() {
  [[ $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] \
    || fail "--name='$name': use lower-case letters, digits and hyphens."
  [[ -n $zone ]] || fail "--zone=ZONE is missing, such as --zone=us-west4-a."
  [[ $poll =~ ^[0-9]+([.][0-9]+)?$ ]] || fail "--poll=$poll must be a number of seconds."
  if [[ $verb == run || $verb == create ]]; then
    [[ -n $type ]] || fail "--accelerator_type=TYPE is missing, such as --accelerator_type=v5litepod-16."
    [[ $type != v5e-* ]] || fail "--accelerator_type=$type: gcloud calls v5e v5litepod: use v5litepod-${type#v5e-}."
    [[ $type =~ ^v[0-9]+[a-z]*-[1-9][0-9]*$ ]] \
      || fail "--accelerator_type=$type must be a version and a size, such as v5litepod-16."
    [[ -n $version ]] || version=$(default_version)
  fi
  if [[ $verb == run || $verb == start ]]; then
    [[ " ${arguments[*]}" == *" --config"[=\ ]* ]] || fail "--config=FILE is missing after --. See --help."
    [[ " ${arguments[*]}" == *" --workdir"[=\ ]* ]] || fail "--workdir=DIR is missing after --. See --help."
  fi
  refuse_urls "${arguments[@]}"
  $dry_run || type -P gcloud >/dev/null \
    || fail "there is no command 'gcloud': install the Google Cloud CLI and log in, or try --dry_run."
}

default_version() {
  case $type in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) echo tpu-ubuntu2204-base ;;
  esac
}

# Runs a gcloud command on the slice (tpu VERB …) or on its queued resource (queue VERB …).
tpu() { run gcloud compute tpus tpu-vm "$1" "$name" "${where[@]}" "${@:2}"; }
queue() { run gcloud compute tpus queued-resources "$1" "$name" "${where[@]}" "${@:2}"; }

# Runs a shell command on all workers at once.
on_all() { tpu ssh --quiet --worker=all "--command=$1"; }

# Prints the state of the slice, ABSENT, or UNKNOWN if gcloud fails.
state_of() { # tpu STATE-FIELD | queue STATE-FIELD
  local found
  if found=$("$1" describe "--format=value($2)" 2>"$errors"); then
    echo "${found:-UNKNOWN}"
  elif grep -qiE 'NOT_FOUND|not found' "$errors"; then
    echo ABSENT
  else
    cat "$errors" >&2
    echo UNKNOWN
  fi
}

slice_state() {
  if $queued; then
    local waiting
    waiting=$(state_of queue state.state)
    [[ $waiting == ACTIVE ]] || { echo "$waiting" && return; }
  fi
  state_of tpu state
}

create_slice() {
  local options=("--accelerator-type=$type")
  ! $spot || options+=(--spot)
  if $queued; then
    queue create "--node-id=$name" "--runtime-version=$version" "${options[@]}"
  else
    tpu create "--version=$version" "${options[@]}"
  fi
}

delete_slice() {
  if $queued; then queue delete --force --quiet; else tpu delete --quiet; fi
}

# Creates the slice or waits for it; deletes it first if it was preempted.
make_ready() {
  local state last="" unknown=0
  if $dry_run; then
    ! $queued || queue describe '--format=value(state.state)'
    tpu describe '--format=value(state)'
    create_slice
    return
  fi
  while true; do
    state=$(slice_state)
    [[ $state == "$last" ]] || say "$name is $state."
    last=$state
    [[ $state == UNKNOWN ]] && ((++unknown)) || unknown=0
    case $state in
      READY) break ;;
      ABSENT)
        say "creating $name, $type in $zone."
        if ! create_slice 2>"$errors"; then
          cat "$errors" >&2
          grep -qiE 'no more capacity|not enough capacity|stockout|insufficient capacity' "$errors" \
            || fail "$name could not be created (see above)."
          say "no capacity for $type in $zone; trying again every $poll seconds."
          sleep "$poll"
        fi
        continue
        ;;
      PREEMPTED | TERMINATED | SUSPENDED)
        delete_slice || say "$name could not be deleted (see above); trying again."
        ;;
      STOPPED) fail "$name is stopped: start it with gcloud compute tpus tpu-vm start, or delete it." ;;
      FAILED) fail "the request for $name failed; see gcloud compute tpus queued-resources describe $name, then delete it." ;;
      UNKNOWN) ((unknown < 5)) || fail "gcloud does not return the state of $name (see above)." ;;
    esac
    sleep "$poll"
  done
}

# The Python of the image is too old, so uv installs one.
install() {
  local archive url ref=""
  [[ -z $setup ]] || on_all "$setup" || return
  if [[ -n $source ]]; then
    url=$source
    # An @ before the last slash is part of the address (git@host:…).
    [[ ${source##*/} != *@* ]] || { url=${source%@*} && ref=${source##*@}; }
    on_all "rm -rf pmjax && git clone --quiet ${url@Q} pmjax${ref:+ && git -C pmjax checkout --quiet ${ref@Q}}" || return
  else
    archive=${TMPDIR:-/tmp}/pmjax-$name-$$.tgz
    run tar -czf "$archive" --exclude=__pycache__ -C "$root" \
      setup.py pyproject.toml README.md LICENSE pmjax configs launch || return
    run gcloud compute tpus tpu-vm scp "$archive" "$name:pmjax.tgz" "${where[@]}" \
      --quiet --worker=all || return
    run rm -f "$archive"
    on_all "rm -rf pmjax && mkdir pmjax && tar -xzf pmjax.tgz -C pmjax" || return
  fi
  on_all "python3 -m pip install --quiet --user uv && python3 -m uv venv --quiet --allow-existing --seed --python 3.12 pmjax-venv && pmjax-venv/bin/pip install --quiet './pmjax[tpu]'"
}

# The process of a worker writes its exit status to pmjax-run/status, or 'stopped' after SIGTERM, as
# before a preemption: the run has then saved its state and exits with 0, but is not done.
start() {
  local inner
  # shellcheck disable=SC2016 # expands on the worker
  inner='trap "stopped=1" TERM; ../pmjax-venv/bin/python -m pmjax.main "$@"; code=$?; [ "$stopped" ] && code=stopped; echo $code > ../pmjax-run/status'
  on_all "mkdir -p pmjax-run && cd pmjax-run && { [ -f status ] || [ ! -f pid ] || kill -KILL -- -\$(cat pid) 2>/dev/null || true; } && rm -f status && { [ ! -f log ] || mv log log.before; } && touch log && cd ../pmjax && { PMJAX_DISTRIBUTED=auto PMJAX_MAINTENANCE_URL=http://metadata.google.internal/computeMetadata/v1/instance/maintenance-event setsid nohup bash -c ${inner@Q} pmjax ${arguments[*]@Q} > ../pmjax-run/log 2>&1 < /dev/null & echo \$! > ../pmjax-run/pid; }"
}

# Follows the logs until the processes end.
logs() {
  # shellcheck disable=SC2016 # expands on the worker
  on_all 'tail --pid=$(cat pmjax-run/pid) --lines=+1 --follow=name pmjax-run/log | sed -u "s/^/[worker ${HOSTNAME##*-w-}] /"'
}

# Prints one line per worker: worker I: running, stopped, lost, none or the exit status.
status() {
  # shellcheck disable=SC2016 # expands on the worker
  on_all 'cd pmjax-run 2>/dev/null && { [ -f status ] && s=$(cat status) || { kill -0 $(cat pid) 2>/dev/null && s=running || s=lost; }; } || s=none; echo "worker ${HOSTNAME##*-w-}: $s"'
}

stop() {
  # shellcheck disable=SC2016 # expands on the worker
  on_all 'kill -TERM -- -$(cat pmjax-run/pid)'
}

# Prints the common state of all workers: running, done, stopped, absent, unreachable or 'failed …'.
progress() {
  local lines
  lines=$(status 2>/dev/null | grep -a '^worker ') || true
  [[ -n $lines ]] || { echo unreachable && return; }
  if grep -qE ': (none|lost)$' <<<"$lines"; then
    echo absent
  elif grep -qE ': [1-9][0-9]*$' <<<"$lines"; then
    echo "failed ($(grep -E ': [1-9][0-9]*$' <<<"$lines" | head -n 1))"
  elif grep -q ': stopped$' <<<"$lines"; then
    echo stopped
  elif grep -q ': running$' <<<"$lines"; then
    echo running
  else
    echo "done"
  fi
}

end_follower() {
  [[ -z $follower ]] || kill -- "-$follower" 2>/dev/null || true
  follower=""
}

# Follows a started run. Returns 0 when it is done, 75 when the slice is gone, else exits.
watch() {
  local state found stopped=0 failed=0 unreachable=0 unknown=0
  trap 'say "no longer following; training continues. Run the same command to follow it again."; exit 130' INT TERM
  while true; do
    set -m # its own process group, so that gcloud and its children can be ended
    logs </dev/null &
    follower=$!
    set +m
    while kill -0 "$follower" 2>/dev/null; do
      sleep "$poll"
      state=$(slice_state)
      [[ $state == UNKNOWN ]] && ((++unknown)) || unknown=0
      ((unknown < 20)) || fail "gcloud does not return the state of $name (see above); training may still run."
      [[ $state == READY || $state == UNKNOWN ]] || { end_follower && say "$name is $state." && return 75; }
    done
    state=$(slice_state)
    [[ $state == READY || $state == UNKNOWN ]] || { say "$name is $state." && return 75; }
    found=$(progress)
    [[ $found == unreachable ]] && ((++unreachable)) || unreachable=0
    case $found in
      done) return 0 ;;
      absent) say "a worker has restarted." && return 75 ;;
      failed*) # or the other workers were preempted first, which the state will show soon
        ((++failed < 3)) || { say "training $found; the logs are above and on the workers." && exit 1; }
        ;;
      unreachable) ((unreachable < 20)) || fail "the workers of $name cannot be reached." ;;
      stopped)
        ((++stopped < 10)) || { say "training was stopped and has saved its state; run the same command to resume." && exit 3; }
        ;;
    esac
    sleep "$poll"
  done
}

run_all() {
  local code
  say "the workdir must be on a disk that all workers share and that outlives the slice (see --help)."
  if $dry_run; then
    make_ready
    status
    install
    start
    logs
    echo "# after a preemption, followed by all of the above:"
    delete_slice
    return
  fi
  while true; do
    make_ready
    if [[ $(progress) == running ]]; then
      say "training is running; following it."
    elif ! { install && start; }; then
      [[ $(slice_state) != READY ]] || fail "pmjax could not be installed or started (see above)."
      continue
    fi
    code=0
    watch || code=$?
    ((code == 75)) || break
    say "resuming from the last checkpoint."
  done
  say "training is done. The slice still costs money: launch/tpu_pod.sh delete --name=$name ${where[*]}"
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
verb="" name="" zone="" project="" type="" version="" source="" setup="" poll=30 follower=""
spot=false queued=false dry_run=false arguments=()
parse "$@"
check
where=("--zone=$zone" ${project:+"--project=$project"})
errors=$(mktemp)
trap 'end_follower; rm -f "$errors"' EXIT
case $verb in
  run) run_all ;;
  create) make_ready ;;
  delete) delete_slice ;;
  *) "$verb" ;;
esac
