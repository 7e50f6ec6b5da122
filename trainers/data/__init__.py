"""Raw files to prepared pictures, and prepared pictures to batches: source, prepare, meta, batches, stream."""
