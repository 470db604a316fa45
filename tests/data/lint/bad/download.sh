#!/bin/sh
export HF_HUB_ENABLE_HF_TRANSFER=1
huggingface-cli download Qwen/Qwen3-8B --local-dir qwen --resume-download
python3 llama.cpp/convert_hf_to_gguf.py qwen --outfile qwen.gguf --outtype q5_k_m
