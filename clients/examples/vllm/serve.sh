#!/bin/sh
# Serve a trained adapter. vLLM holds buffers of one rank for all adapters: the exported
# arguments name the smallest that this plan fits into.
#   sh serve.sh job_... MODEL trained
set -eu
fimlora fetch "$1" --format vllm --output vllm.txt
# Its last line is arguments: --enable-lora --max-lora-rank ... --lora-modules fimlora=./adapter
arguments=$(tail -n 1 vllm.txt | sed "s|=./adapter|=$3|")
# shellcheck disable=SC2086
vllm serve "$2" $arguments
