#!/bin/sh
hf download Qwen/Qwen3-8B --local-dir qwen
python3 convert_hf_to_gguf.py qwen --outfile qwen-BF16.gguf --outtype bf16
llama-quantize qwen-BF16.gguf qwen-Q4_K_M.gguf Q4_K_M
llama-server -m qwen-Q4_K_M.gguf -ctk q8_0 -ctv q8_0 -fa on --threads 8
curl http://127.0.0.1:8080/v1/chat/completions -d '{"messages": [{"role": "user", "content": "the prompt"}]}'
curl http://127.0.0.1:8080/v1/completions -d '{"prompt": "Once", "max_tokens": 16}'
