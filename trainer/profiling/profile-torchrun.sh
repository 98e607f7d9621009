#!/usr/bin/env bash
# Profiles this node, all its GPUs at a time. Run it on every node with NODES=480, NODE=0..., HEAD=<first node's address>;
# with NODES=1, the default, each node is measured by itself and 'flopcast profile --merge' puts the files together.
set -euo pipefail
output=${OUTPUT:-profile-$(hostname -s).json}
gpus=${GPUS:-$(nvidia-smi --list-gpus | wc -l)}
exec python3 -m torch.distributed.run --nnodes "${NODES:-1}" --node-rank "${NODE:-0}" --nproc-per-node "$gpus" \
  --master-addr "${HEAD:-127.0.0.1}" --master-port "${PORT:-29500}" \
  -m flopcast profile --output "$output" "$@"
