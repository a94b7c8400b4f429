#!/usr/bin/env bash
# Trains the published rows, one after the other, at the lowest priority; repeat to go on.
#
#     benchmarks/published.sh DATA OUT
#
# DATA is CIFAR-10, as --config.data.path; OUT holds the workdirs. Call it from a frozen
# checkout with an environment of its own, so that a row begins and ends on one commit;
# finished records are in its benchmarks/results/runs.
set -euo pipefail
cd "$(dirname "$0")/.."
echo 19 > /proc/self/autogroup 2> /dev/null || true # where sessions share the processor
exec nice -n 19 "${PYTHON:-python}" benchmarks/reproduce.py --minutes 30000 \
  --data "$1" --out "$2" --rows shufflenet_v2_x0_5 canet_tiny mobilenet_v2 vgg_a vgg_a_bn
