#!/bin/sh
# Flash-attention reduces KV memory. Going 8k -> 32k costs 2 GB. Gen3 x8: 16 GB/s.
# Two GPUs are slower than one. Q3_K_M is unusable. K-means makes Q4_K_M: 95 % of the quality.
# llama.cpp is single threaded. Use llama-bench for VRAM. Driver 535 for CUDA 12.3.
# Leave 2 GB of VRAM free. llama_supports_gpu_offload says if flash attention is there.
# pipeline parallel from 20B up. Throttling after 20 min. Q4_K_M: 12 % accuracy lost.
# n_gpu_layers = -1 spills into RAM. -ngl 35 keeps the head on the CPU. the KV cache fragments.
# target: > 40 t/s, < 80 % VRAM
curl http://localhost:8080/v1/chat/completions -d '{"prompt": "Hello"}'
