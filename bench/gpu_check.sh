#!/usr/bin/env bash
# The check of a release on a GPU: which kernels are right, which hang, and how fast they are beside cuDNN.
#
#   bench/gpu_check.sh                 what a pass of 330 seconds holds; a second start goes on where the first stopped
#   BUDGET=600 bench/gpu_check.sh      another number of seconds
#   bench/gpu_check.sh --help          the steps, and what else can be set
#
# PYTHON names the Python whose torch is built for CUDA (python3). Before, where compiling costs nothing:
# `make build gpu-runner ARCHS=90a`, or what the device will be. docs/testing.md has the whole road.
set -eu
cd "$(dirname "$0")/.."
export PATH="$PATH:/usr/local/cuda/bin"
exec python3 bench/gpu_check.py "$@"
