#!/bin/sh
# ms-swift takes no pattern of ranks: it trains an adapter folder on, which has them.
# The job must have been asked for weights: fimlora calibrate MODEL DATASET --budget 8 --weights
#   sh train.sh job_... train.jsonl
set -eu
fimlora fetch "$1" --output adapter
fimlora fetch "$1" --format ms-swift --output lora.txt
# Its last line is arguments: --model ... --adapters ./adapter
# shellcheck disable=SC2046
swift sft $(tail -n 1 lora.txt) --dataset "$2" \
    --num_train_epochs 1 --learning_rate 2e-4 --output_dir trained
