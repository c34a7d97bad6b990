#!/usr/bin/env bash
# Submits itself to SLURM as the job that runs pmjax.main on one or several GPU nodes.
#SBATCH --job-name=pmjax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --output=pmjax-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: launch/gpu_slurm.sh [options] -- <arguments of pmjax.main>

Submits a job with one process per GPU, as jax.distributed expects under SLURM. Two minutes before
the time limit, and when the job is preempted, the processes save their state; the job requeues itself
and resumes. The workdir must be on a disk that all nodes share.

  --nodes=N              nodes (1)
  --gpus_per_node=G      GPUs per node, one process each (1)
  --cpus_per_gpu=C       cores per process (8)
  --time=LIMIT           such as 24:00:00 (default: of the partition)
  --partition=NAME, --account=NAME
  --sbatch=OPTION        any other option of sbatch; may be repeated
  --python=PATH          Python with pmjax installed, on all nodes (python)
  --dry_run              print the commands without running them

  launch/gpu_slurm.sh --nodes=2 --gpus_per_node=8 --time=12:00:00 -- --config=configs/celeba.py \
    --workdir=/shared/runs/celeba
TEXT
}

fail() {
  echo "gpu_slurm.sh: $*" >&2
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

# Inside the job (or an allocation of salloc): runs the processes, forwards SIGTERM, requeues.
run_job() {
  local python=$1 asked=false code=0 pid
  shift
  export PMJAX_DISTRIBUTED=auto
  srun --label --kill-on-bad-exit=1 ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} \
    "$python" -m pmjax.main "$@" &
  pid=$!
  # srun itself would end the step at once on SIGTERM; scancel signals the processes.
  trap 'asked=true; scancel --signal=TERM "$SLURM_JOB_ID" || true' TERM
  while true; do
    code=0
    wait "$pid" || code=$?
    kill -0 "$pid" 2>/dev/null || break
  done
  trap '' TERM
  $asked || exit "$code"
  # A job that the user canceled stays canceled.
  if [[ $(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T) == RUNNING ]]; then
    echo "gpu_slurm.sh: stopped by SIGTERM; requeueing job $SLURM_JOB_ID."
    scontrol requeue "$SLURM_JOB_ID"
  fi
}

nodes=1 gpus=1 cpus=8 python=python dry_run=false options=()
while (($#)); do
  case $1 in
    -h | --help) usage && exit ;;
    --nodes=*) nodes=${1#*=} ;;
    --gpus_per_node=*) gpus=${1#*=} ;;
    --cpus_per_gpu=*) cpus=${1#*=} ;;
    --time=* | --partition=* | --account=*) options+=("$1") ;;
    --sbatch=*) options+=("${1#*=}") ;;
    --python=*) python=${1#*=} ;;
    --dry_run) dry_run=true ;;
    --) shift && break ;;
    *) fail "unknown option '$1'; put the arguments of pmjax.main after --. See --help." ;;
  esac
  shift
done
for pair in "nodes=$nodes" "gpus_per_node=$gpus" "cpus_per_gpu=$cpus"; do
  [[ ${pair#*=} =~ ^[1-9][0-9]*$ ]] || fail "--$pair must be a positive number."
done
[[ " $*" == *" --config"[=\ ]* ]] || fail "--config=FILE is missing after --. See --help."
[[ " $*" == *" --workdir"[=\ ]* ]] || fail "--workdir=DIR is missing after --; all nodes must share it."
refuse_urls "$@"

if [[ -n ${SLURM_JOB_ID:-} ]] && ! $dry_run; then
  run_job "$python" "$@"
  exit
fi
# GPUs are not bound to tasks: jax.distributed assigns GPU i of a node to its process i.
submit=(
  sbatch "--nodes=$nodes" "--gpus-per-node=$gpus" "--ntasks-per-node=$gpus"
  "--cpus-per-task=$cpus" "${options[@]}" "$0" "--python=$python" -- "$@"
)
if $dry_run; then
  show "${submit[@]}"
  echo "# in the job:"
  show env PMJAX_DISTRIBUTED=auto srun --label --kill-on-bad-exit=1 "--cpus-per-task=$cpus" \
    "$python" -m pmjax.main "$@"
  exit
fi
type -P sbatch >/dev/null || fail "there is no command 'sbatch': run this on a SLURM cluster, or try --dry_run."
"${submit[@]}"
