#!/bin/sh
# flash attention cuts the KV cache by 50 %
# going from 8K to 32K adds 1.5-2 GB
llama-server -m m.gguf -ctk q8_0 -ctv q8_0 -fa off --sliding-window 1024
