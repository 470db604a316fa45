#!/bin/bash
for m in a b; do
  huggingface-cli download "$m" \
    --resume-download \
    --local-dir "models/$m"
  python convert_hf_to_gguf.py "models/$m" --outtype=Q4_K_S
done
