#!/bin/sh
# CUBLAS was the name before: -DLLAMA_CUBLAS=on
CMAKE_ARGS="-DLLAMA_CUDA=on" pip install llama-cpp-python==0.3.2
export LLAMA_CUDA=1
