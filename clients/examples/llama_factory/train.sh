#!/bin/sh
# LLaMA-Factory takes no pattern of ranks: it trains an adapter folder on, which has them.
# The job must have been asked for weights: fimlora calibrate MODEL DATASET --budget 8 --weights
#   sh train.sh job_...
set -eu
cd "$(dirname "$0")"
fimlora fetch "$1" --output adapter
fimlora fetch "$1" --format llama-factory --output lora.yaml
cat lora.yaml base.yaml > train.yaml
llamafactory-cli train train.yaml
