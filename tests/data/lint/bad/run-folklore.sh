#!/bin/sh
# llama.cpp runs single-threaded by default
export OMP_NUM_THREADS=16
# PCIe gen3 x8 gives 15 GB/s, so splitting over two cards is slower
# Q3_K breaks quality (PPL > 1.5); Q4_K_M keeps 95% quality at 25% memory
# llama-bench shows peak memory
llama-server -m m.gguf --cache-type-v q4_0 --flash-attn off -ngl -1 # -1 lets it swap when the card is full
