#!/usr/bin/env bash
#PBS -N flopcast-profile
#PBS -l select=2:ncpus=64:ngpus=8
#PBS -l place=scatter:excl
#PBS -l walltime=00:30:00
# qsub profile-pbs.sh (PBS Professional, OpenPBS): every node by itself, its collectives over NVLink; then all together,
# collectives over the network; then one file, naming the odd nodes. The folder must be one that all nodes see.
set -euo pipefail
cd "${PBS_O_WORKDIR:-$PWD}"
folder=${FOLDER:-$PWD/profile-${PBS_JOBID%%.*}}
mkdir -p "$folder"
mapfile -t nodes < <(sort -u "$PBS_NODEFILE")
gpus=${GPUS:-8}
python=$(command -v python3)

for node in "${nodes[@]}"; do
  pbs_tmrsh "$node" "$python" -m torch.distributed.run --standalone --nproc-per-node "$gpus" \
    -m flopcast profile --output "$folder/${node%%.*}.json" &
done
wait
for place in "${!nodes[@]}"; do
  pbs_tmrsh "${nodes[$place]}" "$python" -m torch.distributed.run --nnodes "${#nodes[@]}" --node-rank "$place" \
    --nproc-per-node "$gpus" --master-addr "${nodes[0]}" --master-port "${PORT:-29500}" \
    -m flopcast profile --kinds collective --output "$folder/network.json" &
done
wait
"$python" -m flopcast profile --merge "$folder"/*.json --output "$folder.json"
