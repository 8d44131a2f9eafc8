"""What a run is, what came out of it, and the folder that holds both. Nothing here imports torch."""
