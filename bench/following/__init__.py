"""A folder's runs in TensorBoard, Weights & Biases or MLflow, while they end; see `bench follow`."""
