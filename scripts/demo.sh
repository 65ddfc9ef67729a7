#!/bin/sh
# Pretrain on the embedded digits with three seeds, finetune with and without nullspace noise for equally many epochs,
# and evaluate all nine models. Prints a table; everything is in outputs/demo.
set -eu
python=${PYTHON:-python}
out=outputs/demo
rm -rf "$out"
# Sums depend on the number of threads, and so do the weights. One thread is nearly as fast for a model this small.
export OMP_NUM_THREADS=1
quiet="logger=csv logger.num_images=0 trainer=cpu trainer.enable_progress_bar=false val_attack_batches=0"

$python train.py -m experiment=digits_pretrain seed=0,1,2 $quiet \
    hydra.sweep.dir=$out/pretrained 'hydra.sweep.subdir=seed${seed}'
$python train.py -m experiment=digits_finetune method=clean,nullspace seed=0,1,2 $quiet \
    'checkpoint="outputs/demo/pretrained/seed${seed}"' \
    hydra.sweep.dir=$out 'hydra.sweep.subdir="${hydra:runtime.choices.method}/seed${seed}"'
$python evaluate.py "checkpoint=[$out/pretrained/*,$out/clean/*,$out/nullspace/*]" suite=demo accelerator=cpu \
    cache=$out/cache hydra.run.dir=$out/results
