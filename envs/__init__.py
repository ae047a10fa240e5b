"""Datasets, masks, reward models and the Gymnasium environments."""

from __future__ import annotations

from maskaug.envs.conformance import check_vector_env

__all__ = ["check_vector_env"]
