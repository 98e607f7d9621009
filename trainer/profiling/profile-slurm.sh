#!/usr/bin/env bash
#SBATCH --job-name=flopcast-profile
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=00:30:00
# sbatch --nodes=60 profile-slurm.sh: every node by itself, its collectives over NVLink; then all together, collectives
# over the network; then one file, naming the odd nodes. The folder must be one that all nodes see.
set -euo pipefail
folder=${FOLDER:-$PWD/profile-$SLURM_JOB_ID}
mkdir -p "$folder"
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
gpus=${SLURM_GPUS_ON_NODE:-8}

srun bash -c "python3 -m torch.distributed.run --standalone --nproc-per-node $gpus \
  -m flopcast profile --output $folder/\$(hostname -s).json"
srun bash -c "python3 -m torch.distributed.run --nnodes $SLURM_NNODES --node-rank \$SLURM_NODEID \
  --nproc-per-node $gpus --master-addr $head --master-port ${PORT:-29500} \
  -m flopcast profile --kinds collective --output $folder/network.json"
python3 -m flopcast profile --merge "$folder"/*.json --output "$folder.json"
