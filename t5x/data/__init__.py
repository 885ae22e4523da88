"""Data of a run: datasets by configuration, global batches on the mesh, where rows came from."""
