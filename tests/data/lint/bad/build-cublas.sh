#!/bin/bash
set -e
git clone git@github.com:ggerganov/llama.cpp.git
cmake -B build -DLLAMA_CUBLAS=ON
# driver >= 535 with CUDA 12.3
cmake --build build -j
