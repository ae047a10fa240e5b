"""Datasets, masks, reward models and the Gymnasium environments."""
