#!/bin/sh
sysctl -w vm.swappiness=10
sysctl -w vm.vfs_cache_pressure=50   # keep the weights cached
modprobe zram && zramctl /dev/zram0 --size 8G && swapon /dev/zram0
fallocate -l 16G /swapfile && mkswap /swapfile && swapon /swapfile
# the kernel will swap VRAM to disk when it is full
taskset -c 0-15 ./llama-server -m m.gguf --threads 16 --host 127.0.0.1
