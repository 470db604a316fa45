#!/bin/sh
CMAKE_ARGS="-DLLAMA_CUDA=ON" pip install llama-cpp-python==0.3.2
python -m vllm.entrypoints.openai.api_server --model Qwen/Qwen3-8B
