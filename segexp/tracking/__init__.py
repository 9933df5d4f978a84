"""Runs in the tools people watch them with: TensorBoard, MLflow, W&B, CSV."""
