"""Runs in the forms of others: folders for TensorBoard, and for the Hugging Face hub."""
