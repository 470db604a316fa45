#!/bin/sh
# KV cache grows with every request and fragments VRAM, so VRAM swaps
taskset 0xff /opt/llama/llama-server -m m.gguf
