#!/bin/sh
# Axolotl 0.18 or newer: planned ranks in its own words, the rest of the run in base.yaml.
#   sh train.sh TASK:TAG
set -eu
cd "$(dirname "$0")"
fimlora fetch --pin "$1" --format axolotl --output lora.yaml
cat lora.yaml base.yaml > train.yaml
axolotl train train.yaml
