#!/bin/sh
# Pretrain on the embedded digits with three seeds, finetune with and without nullspace noise for equally many epochs,
# and evaluate all nine models. Prints a table; everything is in outputs/demo.
set -eu
python=${PYTHON:-python}
out=outputs/demo
rm -rf "$out"
# Sums depend on the number of threads, and so do the weights. One thread is nearly as fast for a model this small.
export OMP_NUM_THREADS=1

train() {
    $python train.py "$@" logger=csv logger.num_images=0 trainer=cpu trainer.enable_progress_bar=false \
        val_attack_batches=0
}

pretrain_and_finetune() {
    train experiment=digits_pretrain "seed=$1" "hydra.run.dir=$out/pretrained/seed$1" &&
        train -m experiment=digits_finetune method=clean,nullspace "seed=$1" "checkpoint=$out/pretrained/seed$1" \
            "hydra.sweep.dir=$out" 'hydra.sweep.subdir="${hydra:runtime.choices.method}/seed${seed}"'
}

# The seeds at the same time, to use several cores. Background processes ignore Ctrl-C, hence the trap.
trap 'trap - INT TERM; kill 0' INT TERM
pids=
for seed in 0 1 2; do
    pretrain_and_finetune "$seed" &
    pids="$pids $!"
done
failed=0
for pid in $pids; do
    wait "$pid" || failed=1
done
[ $failed = 0 ]
$python evaluate.py "checkpoint=[$out/pretrained/*,$out/clean/*,$out/nullspace/*]" suite=demo accelerator=cpu devices=2 \
    cache=$out/cache hydra.run.dir=$out/results
