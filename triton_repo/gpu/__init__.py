"""The image pipeline on an NVIDIA GPU: PyTorch, CUDA graphs and DALI, which are imported nowhere else."""
