#!/bin/sh
# for a CPU host
cmake -S llama.cpp -B build -DGGML_NATIVE=ON
cmake --build build -j
