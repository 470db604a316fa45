#!/bin/sh
set -eu
git clone --depth 1 https://github.com/ggml-org/llama.cpp
cmake -S llama.cpp -B build -DGGML_CUDA=ON -DCMAKE_BUILD_TYPE=Release
cmake --build build -j
