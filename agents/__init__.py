"""Agents that choose masks, and the rows they are compared with."""
