#!/usr/bin/env bash
# One run on N nodes x G GPUs, or an array of jobs; it goes on by itself after its time limit or a preemption.
#
#   sbatch deploy/slurm.sh unlabeled pretrain mae_vitb16_in1k data.path=/pictures
#   sbatch --nodes=1 --gpus-per-node=1 --array=0-2 deploy/slurm.sh unlabeled finetune RECIPE.yaml seed=%a run.output=runs/tuned_%a
#   sbatch --nodes=1 --gpus-per-node=1 --array=0-7 deploy/slurm.sh unlabeled embed EXPORT /pictures/part-%a /features/part-%a
#
# `%a` is the number of a job of an array. The run's folder must lie on a file system that all nodes share.
#SBATCH --job-name=unlabeled
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out
# three minutes before the limit: time to finish a step and to write a checkpoint
#SBATCH --signal=B:USR1@180
set -uo pipefail

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
address=$first:$((20000 + SLURM_JOB_ID % 20000))
node=${NODE_PY:-$SLURM_SUBMIT_DIR/deploy/node.py}
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun no longer takes it from sbatch

# no --kill-on-bad-exit: the others are still writing; node.py ends them when they hang
srun --kill-on-bad-exit=0 --wait=180 python "$node" --address "$address" "${@//%a/${SLURM_ARRAY_TASK_ID:-0}}" &
step=$!
# USR1 in either case: srun kills its tasks when it gets TERM
trap 'kill -USR1 "$step" 2>/dev/null' USR1 TERM
while kill -0 "$step" 2>/dev/null; do wait "$step"; done
wait "$step"
code=$?

case $code in
0) exit 0 ;;
75) again=yes ;; # stopped by a signal, with a checkpoint
69 | 137) # a process or a node is lost: not for ever, it may be a defect
    again=no
    ((SECONDS >= ${AGAIN_AFTER:-600})) && again=yes ;;
*) again=no ;; # 2: the message says what to change
esac
echo "$(date '+%F %T') job $SLURM_JOB_ID ended with $code after $SECONDS s, once more: $again" >&2
if [ "$again" = yes ]; then
    scontrol requeue "$SLURM_JOB_ID" && exit 0
fi
exit "$code"
