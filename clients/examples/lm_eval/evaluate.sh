#!/bin/sh
# Evaluate a trained adapter with lm-eval, which loads it by stock PEFT.
#   sh evaluate.sh MODEL trained arc_easy,hellaswag
set -eu
lm_eval --model hf --model_args "pretrained=$1,peft=$2" --tasks "$3" --batch_size auto
