#!/bin/sh
# keep 20% of VRAM free
# llama_supports_gpu_offload() tells whether flash attention works
# pipeline parallelism only pays above 20B
# the card throttles after 15-20 minutes
# Q4_K_M costs 12-18 % accuracy in code
# acceptance: > 40 tokens/s and < 80 % VRAM
# vllm requires 16 GB
llama-server -m m.gguf --host 0.0.0.0
