"""What finished runs are used for: prediction, export, model and study cards."""
