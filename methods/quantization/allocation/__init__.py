"""Bits per operation: what a layer loses at each width, and the widths that lose least within a budget."""
